"""What a study says: statements that hold or do not, with the numbers that decide, paired by seed."""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from resforge.studies.catalog import StudySpec
from resforge.studies.report import Finding, Measured, Series

Table = Mapping[str, Series]


def findings(spec: StudySpec, members: Sequence[Measured], series: Table) -> list[Finding]:
    """The study's statements. Those whose numbers are not there yet are left open."""
    return [*_OF[spec.study](series), *(_starts(members, series) if spec.study == "identity" else ())]


def _difference(series: Table, more: str, less: str, figure: str) -> dict[str, float]:
    """By seed, a figure of one series less that of another; for the seeds that both have."""
    one, other = (getattr(series[name], figure) if name in series else None for name in (more, less))
    if one is None or other is None:
        return {}
    return {seed: value - other.values[seed] for seed, value in one.values.items() if seed in other.values}


def _numbers(difference: Mapping[str, float], agrees: Callable[[float], bool]) -> dict[str, Any]:
    agreeing = sum(agrees(value) for value in difference.values())
    return {
        "difference_by_seed": dict(difference),
        "mean": statistics.fmean(difference.values()) if difference else None,
        "seeds_that_agree": f"{agreeing} of {len(difference)}",
    }


def _in_mean(statement: str, difference: Mapping[str, float], agrees: Callable[[float], bool]) -> Finding:
    numbers = _numbers(difference, agrees)
    mean = numbers["mean"]
    return Finding(statement=f"{statement}, in mean", holds=None if mean is None else agrees(mean), numbers=numbers)


def _below(value: float) -> bool:
    return value < 0


def _not_above(value: float) -> bool:
    return value <= 0


def _above(value: float) -> bool:
    return value > 0


def _depths(series: Table, kind: str) -> list[int]:
    found = (item.depth for name, item in series.items() if name.startswith(f"{kind}-") and item.role == "training")
    return sorted({depth for depth in found if depth is not None})


def _degradation(series: Table) -> Iterator[Finding]:
    shallow, *deeper = _depths(series, "plain")
    for deep in deeper:
        plain = _difference(series, f"plain-{deep}", f"plain-{shallow}", "train_error")
        residual = _difference(series, f"resnet-{deep}", f"resnet-{shallow}", "train_error")
        yield Finding(
            statement=f"plain-{deep} has a higher training error than plain-{shallow}, in every seed",
            holds=all(map(_above, plain.values())) if plain else None,
            numbers=_numbers(plain, _above),
        )
        yield _in_mean(f"resnet-{deep} has no higher training error than resnet-{shallow}", residual, _not_above)
        gaps = [statistics.fmean(gap.values()) if gap else None for gap in (plain, residual)]
        yield Finding(
            statement=f"from {shallow} to {deep} layers the residual gap is at most half of the plain one, in mean",
            holds=_at_most_half(*gaps),
            numbers={
                "plain_gap": gaps[0],
                "residual_gap": gaps[1],
                "ratio": gaps[0] / gaps[1] if gaps[0] and gaps[1] and gaps[1] > 0 else None,
            },
        )


def _at_most_half(plain: float | None, residual: float | None) -> bool | None:
    if plain is None or residual is None:
        return None
    return plain > 0 and residual <= plain / 2


def _identity(series: Table) -> Iterator[Finding]:
    for kind in ("plain", "resnet"):
        [grown] = [name for name in series if name.startswith(f"{kind}-") and name.endswith("-grown")]
        deep = grown.removesuffix("-grown")
        [continued] = [name for name in series if name.startswith(f"{kind}-") and name.endswith("-continued")]
        shallow = continued.removesuffix("-continued")

        def gap(more: str, less: str) -> dict[str, float]:
            return _difference(series, more, less, "train_error")

        yield _in_mean(
            f"{grown}, trained on, has no higher training error than {shallow}", gap(grown, shallow), _not_above
        )
        yield _in_mean(
            f"{grown} has no higher training error than {shallow} trained on for as long",
            gap(grown, continued),
            _not_above,
        )
        if kind == "plain":
            scratch = f"{deep}-scratch"
            yield _in_mean(
                f"{scratch}, of as many steps in all, ends with a higher training error than {grown}",
                gap(scratch, grown),
                _above,
            )
            yield _in_mean(f"{scratch} ends with a higher training error than {shallow}", gap(scratch, shallow), _above)


def _starts(members: Sequence[Measured], series: Table) -> Iterator[Finding]:
    """Whether grown networks, before their first step, evaluate exactly as the networks that they were grown from."""
    by_place = {(member.series, member.seed): member for member in members if member.role != "reading"}
    for name, item in series.items():
        if item.role != "start":
            continue
        kind = name.split("-")[0]
        [shallow] = [other.removesuffix("-continued") for other in series
                     if other.startswith(f"{kind}-") and other.endswith("-continued")]  # fmt: skip
        worst: dict[str, float] = {}
        for (other, seed), start in by_place.items():
            first = by_place.get((shallow, seed))
            if other != name or first is None:
                continue
            for mine, theirs in ((start.train_loss, first.train_loss), (start.test_loss, first.test_loss)):
                if mine is not None and theirs is not None:
                    worst[str(seed)] = max(worst.get(str(seed), 0.0), abs(mine - theirs))
        yield Finding(
            statement=f"before its first step {name.removesuffix('-start')}-grown has the losses of {shallow}, "
            "to the last bit, on training and held-out images, in every seed",
            holds=not any(worst.values()) if worst else None,
            numbers={"largest_difference_by_seed_in_nats": worst},
        )


def _depth(series: Table) -> Iterator[Finding]:
    for less, more in pairwise(_depths(series, "resnet")):
        names = f"resnet-{more}", f"resnet-{less}"
        if more > 1000:  # the paper's own finding (section 4.2)
            yield _in_mean(
                f"{names[0]} has a higher test error than {names[1]}, as it overfits",
                _difference(series, *names, "test_error"),
                _above,
            )
        else:
            yield _in_mean(
                f"{names[0]} has a lower test error than {names[1]}",
                _difference(series, *names, "test_error"),
                _below,
            )


def _shortcuts(series: Table) -> Iterator[Finding]:
    for depth in _depths(series, "resnet"):
        rest = [name for name in series if name.startswith(f"resnet-{depth}-") and not name.endswith(("-A", "-B"))]
        pairs = [(f"resnet-{depth}-A", name) for name in rest]
        if [name[-1] for name in rest] == ["C"]:  # ImageNet, table 3: C before B before A
            pairs = [(f"resnet-{depth}-B", f"resnet-{depth}-A"), (f"resnet-{depth}-C", f"resnet-{depth}-B")]
        for better, worse in pairs:
            difference = _difference(series, better, worse, "test_error")
            yield _in_mean(f"{better} has a lower test error than {worse}", difference, _below)


def _preactivation(series: Table) -> Iterator[Finding]:
    for depth in _depths(series, "preact"):
        difference = _difference(series, f"preact-{depth}", f"resnet-{depth}", "test_error")
        yield _in_mean(f"preact-{depth} has a lower test error than resnet-{depth}", difference, _below)


def _transfer(series: Table) -> Iterator[Finding]:
    for depth in _depths(series, "resnet"):
        for better, worse in (("tuned", "scratch"), ("tuned", "frozen"), ("frozen", "scratch")):
            names = f"resnet-{depth}-{better}", f"resnet-{depth}-{worse}"
            difference = _difference(series, *names, "test_error")
            yield _in_mean(f"{names[0]} has a lower test error than {names[1]}", difference, _below)


_OF: Mapping[str, Callable[[Table], Iterator[Finding]]] = {
    "degradation": _degradation,
    "identity": _identity,
    "depth": _depth,
    "shortcuts": _shortcuts,
    "preactivation": _preactivation,
    "transfer": _transfer,
}
