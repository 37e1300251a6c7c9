"""The promotion gate: decides whether a new version becomes champion, and rolls back.

``python -m model.gate --model models:/lyft-unet/3 --dataset DIR`` decides again;
``python -m model.gate --rollback lyft-unet`` gives the alias back to the previous champion.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from model.decision import ONE_CLASS, Decision, critical_classes, decide
from model.groups import groups_of
from model.plan import Plan
from model.seen import SEEN_IN, count_seen
from model.version_tags import CHALLENGER
from runtime.command_line import (
    Log,
    Parser,
    add_config,
    add_tracking_uri,
    config_from,
    log_as,
    run_main,
)
from runtime.errors import UnavailableError, UserError
from runtime.imports import import_quickly
from runtime.mlflow_store import outages_as_unavailable
from schemas.classes import Taxonomy
from schemas.config import GateConfig
from schemas.stats import Int64Array

_log = log_as("gate")


class NotPromotedError(UserError):
    """The gate did not promote a version, and there is no champion to predict with."""


def run_gate(
    uri: str, plan: Plan, config: GateConfig, log: Log, counts: Int64Array | None = None
) -> str:
    """Decides on a registered version, moves the aliases and logs the decision.

    Evaluation takes minutes, in which another training may end. If the champion has changed by
    then, the decision is made again.

    Args:
        plan: the version's configuration, and the dataset on whose test split both networks are
            evaluated.
        counts: confusion matrix of each test image, if the version was evaluated before.

    Returns:
        URI of the version to predict with: this one, or the champion if that stays.

    Raises:
        NotPromotedError: the version was not promoted and there is no champion.
    """
    from model import registry

    name, fingerprint = plan.config.model_name, plan.manifest.fingerprint
    champion = registry.champion(name)
    if config.promote == "never" or champion == uri:
        return uri
    registry.set_alias(uri, CHALLENGER)
    while True:
        reason = registry.earlier_refusal(uri, champion, fingerprint, config)
        if config.promote == "gate" and reason:
            log(f"not promoted: {reason}")
            return _champion_or_error(uri, champion, reason)
        if counts is None:
            counts = _counts(uri, plan)
        decision = _decide_on(uri, champion, plan, config, log, counts)
        if registry.record_decision(uri, champion, fingerprint, decision, config):
            break
        champion = registry.champion(name)
        if champion == uri:
            return uri
        log(f"the champion has changed meanwhile, to {champion}: deciding again")
    log(f"{'promoted' if decision.promoted else 'not promoted'}: {decision.reason}")
    return uri if decision.promoted else _champion_or_error(uri, champion, decision.reason)


def outcome_if_known(uri: str, plan: Plan, config: GateConfig) -> str | None:
    """What ``run_gate`` would return; None if it would have to evaluate.

    Reads only.

    Raises:
        NotPromotedError: as ``run_gate``.
    """
    from model import registry

    champion = registry.champion(plan.config.model_name)
    if config.promote != "gate" or champion == uri:
        return uri
    reason = registry.earlier_refusal(uri, champion, plan.manifest.fingerprint, config)
    return _champion_or_error(uri, champion, reason) if reason else None


def check_champion(name: str, taxonomy: Taxonomy) -> None:
    """Refuses a training whose result cannot be compared with the champion.

    Raises:
        UserError: the champion has another taxonomy.
    """
    from model import registry

    champion = registry.champion(name)
    if champion is None:
        return
    try:
        facts = registry.metadata(champion)
    except UnavailableError:
        raise
    except UserError:
        if registry.is_damaged(champion):
            return  # The gate does not compare with it, and says so.
        raise
    other = Taxonomy.model_validate(facts["taxonomy"])
    if other.mapping_sha256 != taxonomy.mapping_sha256:
        raise UserError(
            f"champion {champion} has taxonomy {other.name}, this training {taxonomy.name}: "
            "they cannot be compared; choose another --model_name, or --promote=always"
        )


@outages_as_unavailable()
def main(arguments: Sequence[str]) -> str:
    """The command line; returns the URI of the champion."""
    parser = Parser(
        prog="python -m model.gate",
        description="Decides whether a version becomes champion, or rolls back.",
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--model", help="models:/<name>/<version> or @<alias> to decide on")
    action.add_argument("--rollback", metavar="NAME", help="give the alias to the champion before")
    parser.add_argument("--dataset", help="folder whose test split decides")
    add_tracking_uri(parser)
    add_config(parser, GateConfig)
    args = parser.parse_args(arguments)
    config = config_from(GateConfig, args)
    import_quickly("model.tracking")
    from model import registry, tracking

    tracking.connect(args.tracking_uri)
    if args.rollback:
        if set("/@") & set(args.rollback):
            raise UserError(
                f"--rollback {args.rollback!r}: expected the name of a model, such as lyft-unet"
            )
        return registry.rollback(args.rollback)
    if not args.dataset:
        raise UserError("expected --dataset, whose test split decides")
    from model.evaluate import plan_for_version

    uri = registry.version_of(args.model)
    chosen = plan_for_version(uri, args.dataset, ["test"])
    critical_classes(config, chosen.taxonomy)
    if config.promote == "gate":
        check_champion(chosen.config.model_name, chosen.taxonomy)
    return run_gate(uri, chosen, config, _log)


def _decide_on(
    uri: str, champion: str | None, plan: Plan, config: GateConfig, log: Log, challenger: Int64Array
) -> Decision:
    groups = groups_of(plan.folder, "test")
    if config.promote == "always":
        decision = decide(challenger, None, plan.taxonomy, config, groups)
        reason = "Promoted regardless, as asked for."
        return decision.model_copy(update={"promoted": True, "reason": reason})
    from model import registry

    if champion is not None and registry.is_damaged(champion):
        log(f"the files of the champion {champion} are damaged, so it is not compared with")
        champion = None
    if champion is None:
        return decide(challenger, None, plan.taxonomy, config, groups)
    log(f"the gate: {uri} against the champion {champion}")
    decision = decide(challenger, _counts(champion, plan), plan.taxonomy, config, groups)
    flattered = "".join(
        f" {one} has {seen:,} of the {len(challenger):,} test images in the "
        f"{' or '.join(SEEN_IN)} split of a dataset that it, or the model it started from, was "
        "trained on, which flatters it."
        for one in (uri, champion)
        if (seen := count_seen(one, plan.folder, ["test"]))
    )
    own = plan.input_size()
    resized = "".join(
        f" {one} was trained on {trained['width']}x{trained['height']}, to which the images of "
        f"{own['width']}x{own['height']} were resized for it."
        for one in (uri, champion)
        if (trained := registry.metadata(one))
        and (trained["width"], trained["height"]) != (own["width"], own["height"])
    )
    return decision.model_copy(update={"reason": f"{decision.reason}{flattered}{resized}"})


def _champion_or_error(uri: str, champion: str | None, reason: str) -> str:
    if champion is None:
        advice = "Train longer or on more, lower --floor"
        if ONE_CLASS in reason:
            advice = "Ingest pairs that show more"
        raise NotPromotedError(
            f"{uri} is registered as challenger and was not promoted: {reason} "
            f"{advice}, or --promote=always"
        )
    return champion


def _counts(uri: str, plan: Plan) -> Int64Array:
    from model.evaluate import evaluate_version

    return evaluate_version(uri, plan, ["test"])[2].counts


if __name__ == "__main__":
    sys.exit(run_main(main))
