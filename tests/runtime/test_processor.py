"""Which processors are fast at bfloat16."""

import pytest

from runtime.processor import has_fast_bfloat16


@pytest.mark.parametrize(
    ("vendor", "flags", "fast"),
    [
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16 amx_tile", True),
        ("GenuineIntel", "avx512f avx512_bf16", False),
        ("AuthenticAMD", "avx512f avx512_bf16", True),
        ("AuthenticAMD", "avx2", False),
    ],
)
def test_where_bfloat16_is_fast(vendor: str, flags: str, fast: bool) -> None:
    text = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
    assert has_fast_bfloat16(text) == fast
