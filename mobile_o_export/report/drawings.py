"""Pictures side by side: PyTorch's, each target's, and a map of where the two differ."""

from __future__ import annotations

from mobile_o_export.parity.judge import Row, Status
from mobile_o_export.report.badges import badge
from mobile_o_export.report.content import Chain, ReportContent
from mobile_o_export.report.judged import verdict_of
from mobile_o_export.report.markup import Html, section, small, tag
from mobile_o_export.report.pictures import LEVELS, Difference, Picture, amplification
from mobile_o_export.report.quantities import decibels, fixed

PIXELATED_BELOW = 200
"""Pixels; a smaller picture is enlarged in whole pixels, so that none of them blurs."""

ABOUT = (
    "From the same prompt and the same noise. Below each target’s picture: its absolute difference from "
    "PyTorch’s, the largest of the three channels, amplified by one factor for all targets of a chain. "
    "Black is no difference."
)
NOT_KEPT = "This bundle holds no pictures of its chains. Export it again with this version to see them."
NO_DRAWING = "No chain that draws was run."


def render(content: ReportContent) -> Html:
    """The section."""
    drawn = [chain for chain in content.chains if chain.draws]
    if not drawn:
        return section("pictures", "Pictures side by side", NO_DRAWING if content.chains else NOT_KEPT)
    return section("pictures", "Pictures side by side", ABOUT, *(_chain(content, chain) for chain in drawn))


def picture(shown: Picture, alt: str) -> Html:
    """An image element."""
    class_ = "pixelated" if max(shown.width, shown.height) < PIXELATED_BELOW else None
    return tag("img", src=shown.url, alt=alt, width=shown.width, height=shown.height, class_=class_)


def figure(title: str, shown: Picture, alt: str, *notes: Html) -> Html:
    """A picture below its title and above its notes."""
    return tag("figure", tag("figcaption", title), picture(shown, alt), *notes, class_="shot")


def _chain(content: ReportContent, chain: Chain) -> Html:
    reference = chain.reference.picture if chain.reference is not None else None
    differences = {
        name: Difference.between(reference, result.picture)
        for name, result in chain.results.items()
        if reference is not None and result.picture is not None
    }
    largest = max((found.largest for found in differences.values() if found is not None), default=0)
    shots = []
    if chain.given is not None:
        shots.append(
            tag("div", figure("given", chain.given, "The picture that was to be edited"), class_="pair")
        )
    if reference is not None:
        alt = f"PyTorch’s drawing of: {chain.prompt}"
        shots.append(tag("div", figure("PyTorch", reference, alt), class_="pair"))
    factor = amplification(largest)
    shots += [
        _target(content, chain, name, differences.get(name), factor)
        for name in content.targets_of_chain(chain)
    ]
    return tag(
        "div",
        tag("h3", f"{chain.task} · {chain.case}"),
        tag("p", tag("q", chain.prompt), class_="prompt"),
        tag("div", *shots, class_="strip"),
        class_="chain",
    )


def _target(
    content: ReportContent, chain: Chain, name: str, difference: Difference | None, factor: int
) -> Html:
    """A target's picture above its difference from PyTorch's, or why there is none."""
    rows = content.rows_of_chain(name, chain)
    verdict = [badge(verdict_of(rows).status)] if rows else []
    result = chain.results.get(name)
    if result is None or result.picture is None:
        reason = next((own.reason for own in rows if own.status is not Status.PASSED), "")
        note = f"no picture{f': {reason}' if reason else ''}"
        return tag(
            "div",
            tag("figure", tag("figcaption", name), *verdict, small(note), class_="shot"),
            class_="pair",
        )
    alt = f"{name}’s drawing of: {chain.prompt}"
    measures = [small(measure) for measure in _measures(rows)]
    parts = [figure(name, result.picture, alt, *verdict, *measures)]
    if difference is not None:
        parts.append(_map(name, difference, factor))
    elif chain.reference is not None and chain.reference.picture is not None:
        parts.append(small("of another size than PyTorch’s: no difference can be shown"))
    return tag("div", *parts, class_="pair")


def _map(name: str, difference: Difference, factor: int) -> Html:
    if difference.largest == 0:
        note = "no difference: every pixel is PyTorch’s"
    else:
        note = f"difference ×{factor}, largest {difference.largest}/{LEVELS}"
    return tag(
        "figure",
        picture(difference.amplified(factor), f"Map of {name}’s difference from PyTorch’s: {note}"),
        small(note),
        class_="shot",
    )


def _measures(rows: tuple[Row, ...]) -> list[str]:
    return [
        f"PSNR {decibels(own.psnr_db)}, SSIM {fixed(own.ssim, 4)}" for own in rows if own.psnr_db is not None
    ]
