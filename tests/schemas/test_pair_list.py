"""Lists of pairs, CSV and Parquet, and the messages for invalid ones."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runtime.errors import UserError
from schemas.pair_list import ListedPair, read_pair_list

ROWS = [
    ListedPair("rgb/1", "rgb/1.jpg", "seg/9.png", "train", "street 7"),
    ListedPair("rgb/2", "rgb/2.jpg", None, "validation", None),
    ListedPair("x.y/3", "x.y/3.png", "seg/3.png", None, "0042"),
]


def _csv(folder: Path, text: str) -> str:
    path = folder / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_csv_and_parquet_say_the_same(tmp_path: Path) -> None:
    text = (
        "weather,image,mask,group,split\n"
        "rain,rgb/1.jpg,seg/9.png,street 7,Train\n"
        "sun,./rgb/2.jpg,,,val\n"
        "sun,x.y/3.png,seg/3.png,0042,\n"
    )
    assert list(read_pair_list(_csv(tmp_path, text))) == ROWS
    table = pa.table(
        {
            "image": ["rgb/1.jpg", "rgb/2.jpg", "x.y/3.png"],
            "mask": ["seg/9.png", None, "seg/3.png"],
            "split": pa.array(["train", "valid", None]).dictionary_encode(),
            "group": ["street 7", None, "0042"],
        }
    )
    pq.write_table(table, tmp_path / "pairs.parquet", row_group_size=2)
    assert list(read_pair_list(str(tmp_path / "pairs.parquet"))) == ROWS
    # Numbers are texts as well.
    pq.write_table(table.set_column(3, "group", pa.array([1, None, 2])), tmp_path / "pairs.parquet")
    groups = [one.group for one in read_pair_list(str(tmp_path / "pairs.parquet"))]
    assert groups == ["1", None, "2"]


def test_other_columns_may_hold_anything(tmp_path: Path) -> None:
    # pyarrow guesses a column's type from the first MiB.
    rows = [f"{number}{'0' * 90},{number}.png,m.png" for number in range(20_000)]
    text = "\n".join(["note,image,mask", *rows, "none,last.png,m.png"])
    assert len(text) > 1 << 20
    *_, last = read_pair_list(_csv(tmp_path, text))
    assert last.image == "last.png"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("picture,mask\na,b\n", "expected the columns image and mask, .* found picture, mask"),
        ("image,mask\na.png,b.png\n,b.png\n", r"row 2: expected an image, found none"),
        ("image,mask\n/a.png,b.png\n", r"row 1: expected a path below the source, found '/a.png'"),
        ("image,mask\na.png,../b.png\n", r"expected a path below the source, found '\.\./b.png'"),
        ("image,mask\ns3://x/a.png,b.png\n", "expected a path below the source"),
        ("image,mask\n./,b.png\n", r"expected a path below the source, found '\./'"),
        ("image,mask\na.png,b\0.png\n", "expected a path below the source, found 'b"),
        ("image,mask,mask\na,b,c\n", "expected one column mask, found several"),
        ("image,mask,split\na.png,b.png,dev\n", "expected the split train, .* found 'dev'"),
        ("image,mask\na.png\n", "cannot be read: CSV parse error: Expected 2 columns, got 1"),
        ("", "cannot be read: Empty CSV file"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        list(read_pair_list(_csv(tmp_path, text)))
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        list(read_pair_list(str(tmp_path / "none.csv")))
    (tmp_path / "pairs.txt").write_text("image,mask\n")
    with pytest.raises(UserError, match=r"expected a name that ends in \.csv or \.parquet"):
        list(read_pair_list(str(tmp_path / "pairs.txt")))
    (tmp_path / "pairs.parquet").write_bytes(b"none")
    with pytest.raises(UserError, match="cannot be read"):
        list(read_pair_list(str(tmp_path / "pairs.parquet")))
