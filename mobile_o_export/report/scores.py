"""Task scores: does the model still draw and answer what it is asked, next to PyTorch on the same tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mobile_o_export.evaluation.score import Difference, Level, Proportion
from mobile_o_export.pipelines.pipeline import TORCH
from mobile_o_export.report.answers import marked
from mobile_o_export.report.charts import interval_bar
from mobile_o_export.report.content import ReportContent
from mobile_o_export.report.drawings import figure, picture
from mobile_o_export.report.evaluated import AskedQuestion, EvaluationContent, Example
from mobile_o_export.report.markup import Html, cell, details, joined, number, row, section, small, table, tag
from mobile_o_export.report.quantities import DASH, count, decibels, percent, points

TITLE = "Task scores"
EVALUATE = "mobile-o-export evaluate BUNDLE --target T --out FOLDER"
REPORT = "mobile-o-export report BUNDLE --evaluation FOLDER"

ABOUT = (
    "Every model was given the same prompts, seeds, pictures and questions. Intervals are 95 % confidence "
    "intervals; a difference from PyTorch whose interval holds zero is within noise."
)


def render(content: ReportContent) -> Html:
    """The section."""
    found = content.evaluation
    if found is None:
        note = tag(
            "p",
            "This bundle’s tasks were not evaluated; run ",
            tag("code", EVALUATE),
            ", then ",
            tag("code", REPORT),
            ".",
        )
        return section("scores", TITLE, "", note)
    return section(
        "scores",
        TITLE,
        ABOUT,
        _drawings(found),
        _answers(found),
        _by_tag(found),
        _examples(found.examples),
        _questions(found),
        _settings(found),
    )


def summarised(content: ReportContent, target: str) -> Html | None:
    """How a target does next to PyTorch, in few words; None where it was not evaluated."""
    found = content.evaluation.scores.get(target) if content.evaluation is not None else None
    if found is None:
        return None
    named = (
        ("drawings", found.drawn, found.drawn_difference),
        ("answers", found.exact, found.exact_difference),
    )
    lines = [
        tag(
            "div",
            f"{percent(rate.rate)} of {name} right",
            *([] if difference is None else [small("against PyTorch: ", _word(difference))]),
        )
        for name, rate, difference in named
        if rate is not None
    ]
    return joined(lines) if lines else None


def _drawings(found: EvaluationContent) -> Html:
    if not any(run.drawings for run in found.runs.values()):
        return Html()
    lines = [
        row(
            _name(model),
            *_rate(scores.drawn),
            cell(_against(model, scores.drawn_difference)),
            number(*_mean(scores.psnr)),
            number(DASH if scores.psnr is None else decibels(scores.psnr.least)),
        )
        for model, scores in found.scores.items()
    ]
    columns = ["model", "#right", "#rate", "0 to 100 %", "against PyTorch, points"]
    columns += ["#mean PSNR", "#least PSNR"]
    judge = found.settings.judge
    caption = f"Drawings that show what was asked, by the judge “{judge}”"
    return table(caption, columns, tag("tbody", *lines))


def _answers(found: EvaluationContent) -> Html:
    if not any(run.answers for run in found.runs.values()):
        return Html()
    lines = [
        row(
            _name(model),
            *_rate(scores.exact),
            cell(_against(model, scores.exact_difference)),
            number(_share(scores.agreement)),
        )
        for model, scores in found.scores.items()
    ]
    columns = ["model", "#exact", "#rate", "0 to 100 %", "against PyTorch, points", "#the same as PyTorch’s"]
    return table("Answers that are the expected words", columns, tag("tbody", *lines))


def _name(model: str) -> str:
    return "PyTorch" if model == TORCH else model


def _rate(found: Proportion | None) -> tuple[Html, Html, Html]:
    """Of how many, how many percent, and the interval."""
    if found is None:
        return number(DASH), number(DASH), cell(DASH)
    interval = f"{percent(found.rate, 1)}, {percent(found.low, 1)} to {percent(found.high, 1)}"
    return (
        number(f"{found.passed:,} / {found.of:,}"),
        number(percent(found.rate, 1)),
        cell(
            interval_bar(found.low, found.rate, found.high, interval),
            small(f"{percent(found.low, 1)} to {percent(found.high, 1)}"),
        ),
    )


def _against(model: str, found: Difference | None) -> Html:
    if found is None:
        return Html("the reference" if model == TORCH else DASH)
    interval = f"{points(found.low)} to {points(found.high)}; gained {found.gained}, lost {found.lost}"
    return joined([points(found.value), " ", _word(found), small(interval)])


def _word(found: Difference) -> Html:
    """Whether a difference is one, in a word."""
    if found.within_noise:
        return tag("strong", "within noise")
    return tag("strong", "higher") if found.low > 0 else tag("strong", "lower", class_="lower")


def _mean(found: Level | None) -> list[str]:
    if found is None:
        return [DASH]
    return [decibels(found.mean), small(f"{decibels(found.low)} to {decibels(found.high)}")]


def _share(found: Proportion | None) -> str:
    return DASH if found is None else f"{found.passed:,} / {found.of:,}, {percent(found.rate, 1)}"


def _by_tag(found: EvaluationContent) -> Html:
    tags = list(dict.fromkeys(name for scores in found.scores.values() for name in scores.by_tag))
    if not tags:
        return Html()
    lines = [
        row(name, *(number(_share(scores.by_tag.get(name))) for scores in found.scores.values()))
        for name in tags
    ]
    columns = ["kind of prompt", *(f"#{_name(model)}" for model in found.scores)]
    return details(
        f"right drawings by kind of prompt, {count(len(tags), 'kind')}",
        table("Right drawings by kind of prompt", columns, tag("tbody", *lines)),
    )


def _examples(examples: Sequence[Example]) -> Html:
    if not examples:
        return Html()
    shown = [
        tag(
            "div",
            tag("p", tag("q", example.task.prompt), class_="prompt"),
            small(f"{example.task.tag}, seed {example.task.seed}"),
            tag("div", *(_drawn(example, model) for model in example.drawings), class_="strip small"),
            class_="chain",
        )
        for example in examples
    ]
    about = "First those that the judge decided differently between models, then one of each kind."
    return joined(
        [tag("h3", "Examples"), tag("p", about, class_="about"), tag("div", *shown, class_="examples")]
    )


def _drawn(example: Example, model: str) -> Html:
    drawn, shown = example.drawings[model]
    verdict = [] if drawn.passed is None else [_judged(drawn.passed)]
    notes = [small(drawn.reason)] if drawn.reason else []
    return figure(_name(model), shown, f"{_name(model)}: {drawn.prompt}", *verdict, *notes)


def _judged(right: bool) -> Html:
    sign, word = ("✓", "right") if right else ("✗", "wrong")
    return tag(
        "span",
        tag("span", sign, class_="sign", aria_hidden="true"),
        f" {word}",
        class_=f"badge {'passed' if right else 'failed'}",
    )


def _questions(found: EvaluationContent) -> Html:
    if not found.runs or not any(run.answers for run in found.runs.values()):
        return Html()
    heading = tag("h3", "Questions answered differently, or wrong")
    if not found.questions:
        return joined([heading, tag("p", "None: every model gave every expected answer.", class_="about")])
    columns = ["picture", "question", "expected", *(_name(model) for model in found.runs)]
    lines = [_question(question) for question in found.questions]
    of = f" of {len(found.questions) + found.questions_left_out:,}" if found.questions_left_out else ""
    caption = f"{len(found.questions)}{of} shown; marked: the first word that is not in PyTorch’s answer"
    return joined([heading, table(caption, columns, tag("tbody", *lines))])


def _question(question: AskedQuestion) -> Html:
    task = question.task
    reference = question.answers.get(TORCH)
    shown = Html() if question.picture is None else picture(question.picture, f"The picture {task.image}")
    return row(
        joined([shown, small(task.image)]),
        cell(task.question),
        cell(task.expected),
        *(
            cell(
                marked(None if reference is None else reference.answer, answer.answer),
                " ",
                _judged(answer.exact),
            )
            for answer in question.answers.values()
        ),
    )


def _settings(found: EvaluationContent) -> Html:
    settings = found.settings
    facts = [
        ("tasks", settings.tasks),
        ("judge", settings.judge),
        ("steps", f"{settings.steps}"),
        ("guidance", f"{settings.guidance:g}"),
        ("first seed", f"{settings.seed}"),
        *((f"{_name(model)}, run by", _runtimes(run.runtimes.values())) for model, run in found.runs.items()),
    ]
    return details("how it was evaluated", tag("dl", *(_fact(*fact) for fact in facts), class_="facts"))


def _fact(title: str, value: str) -> Html:
    return tag("div", tag("dt", title), tag("dd", value))


def _runtimes(runtimes: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(runtimes)) or DASH
