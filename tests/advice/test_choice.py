"""The backbone to take: the cheapest of those that are as good as the best."""

from __future__ import annotations

from dataclasses import replace

from headstart.advice.choice import recommend
from headstart.advice.result import Candidate, Estimate, Measured
from headstart.config.schema import Model


def backbone(
    name: str, accuracy: float, rate: float, *, may_be_best: bool = True, weights: str | None = "default"
) -> Measured:
    model = Model(library="torchvision", name=name, weights=weights)
    candidate = Candidate(name, (f"model={name}",), model, megabytes=50.0, images_per_second=rate)
    return Measured(candidate, 2000, Estimate(accuracy, accuracy - 0.02, accuracy + 0.02), True, [], may_be_best)


def chosen(*measured: Measured, prior: bool = False) -> str:
    return recommend(measured, prior=prior)[0].candidate.name


def test_the_cheapest_within_a_point_is_taken() -> None:
    slow, fast, faster = backbone("slow", 0.960, 10), backbone("fast", 0.955, 40), backbone("faster", 0.93, 90)
    assert chosen(slow, fast, faster) == "fast"
    assert (
        recommend([slow, fast, faster], prior=False)[1] == "fast is the cheapest of 2 that are as accurate as the best"
    )
    assert chosen(slow, replace(fast, may_be_best=False), faster) == "slow"


def test_of_equally_fast_ones_the_smaller_is_taken() -> None:
    large, small = backbone("large", 0.96, 40), backbone("small", 0.96, 38)
    small = replace(small, candidate=replace(small.candidate, megabytes=10.0))
    assert chosen(large, small) == "small"


def test_random_weights_and_restricted_licences_are_taken_only_if_there_is_nothing_else() -> None:
    random, pretrained = backbone("random", 0.97, 90, weights=None), backbone("pretrained", 0.95, 10)
    assert chosen(random, pretrained) == "pretrained"
    assert chosen(random, replace(pretrained, may_be_best=False)) == "random"
    restricted = replace(pretrained, candidate=replace(pretrained.candidate, licence="cc-by-nc-4.0"))
    assert chosen(restricted, backbone("free", 0.94, 5)) == "free"
    assert chosen(restricted) == "pretrained"
    mentioned = replace(pretrained, candidate=replace(pretrained.candidate, licence="see its licence"))
    assert chosen(mentioned, backbone("free", 0.94, 5)) == "pretrained"


def test_with_few_images_the_standing_elsewhere_counts() -> None:
    names = {"strong": (0.78, 0.81), "middle": (0.75, 0.77), "weak": (0.82, 0.60), "weaker": (0.60, 0.55)}
    few = []
    for name, (accuracy, published) in names.items():
        one = replace(backbone(name, accuracy, 10), images=32)
        few.append(replace(one, candidate=replace(one.candidate, published=published)))
    assert chosen(*few) == "weak"
    assert chosen(*few, prior=True) == "strong"
    assert chosen(*(replace(one, images=20_000) for one in few), prior=True) == "weak"
