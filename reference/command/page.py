"""The page of ``adamshap show --html``: one self-contained file with plots and pictures."""

import base64
import io
from collections.abc import Collection, Sequence
from html import escape

from adamshap.reference.command import group_chart, overview, results
from adamshap.reference.command.datasets import label_names
from adamshap.reference.command.errors import why_no_picture
from adamshap.reference.command.examples import extremes_of, fields_of, score_text
from adamshap.reference.command.explain import Explanation
from adamshap.reference.command.folder import DIVERGED, SavedRun
from adamshap.reference.command.groups import GroupScores, group_rows, scores_of_groups
from adamshap.reference.command.images import Images
from adamshap.reference.command.seeds import spread_lines
from adamshap.reference.command.weightings import lines_of
from adamshap.reference.contract import Array
from adamshap.reference.contract.drawing import plain_style
from adamshap.reference.contract.views import figure

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th:first-child, td:first-child, .word { text-align: left; }
.word { white-space: normal; overflow-wrap: anywhere; min-width: 5rem; } .short { white-space: nowrap; }
.long { min-width: 24rem; }
.wide { overflow-x: auto; } .wide svg { width: 100%; min-width: 40rem; height: auto; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; padding: 0; list-style: none; }
.cards img { width: 5.7rem; height: 5.7rem; object-fit: contain; image-rendering: pixelated; border: 1px solid #ddd; }
.cards li { width: 5.8rem; font-size: .8rem; overflow-wrap: anywhere; }
.two { display: flex; flex-wrap: wrap; gap: 0 3rem; } .two > div { min-width: 0; }
.harmful { color: #b2182b; } .helpful { color: #2166ac; }
pre { overflow-x: auto; background: #f6f6f6; padding: 1rem; font-size: .8rem; }
"""


LONGEST = 400
"""Characters of a cell of a table of examples: of longer documents the beginning."""


UNBROKEN, LONG = 24, 80
"""Characters of a text that stay on one line in a table, and of one that needs a wide column."""


def page_of(saved: SavedRun, top: int) -> tuple[str, list[str]]:
    """Return the page of `saved` with its `top` best and worst examples, and notes that it contains.

    The notes are about missing plots or pictures.
    """
    notes: list[str] = []
    dataset = saved.config["dataset"]
    parts = [f"<h1>adamshap: {escape(str(dataset['name']))}</h1>", f"<p>{escape(overview.title_of(saved))}</p>"]
    parts.append(f"<p>{escape(overview.MEANING)}</p>")
    if saved.status == DIVERGED and saved.results is not None:
        parts.append(f'<p class="harmful">{escape(saved.results["message"])}</p>')
    if saved.step:
        parts += [f"<p>{escape(line)}</p>" for line in lines_of(saved)]
        try:
            parts.append(_plots(saved))
        except Exception as error:  # matplotlib's settings, fonts and cache are beyond our control
            notes.append(f"No plots: {why_no_picture(error)}")
        parts.append(_extremes(saved, top, notes))
        parts += [f"<p>{escape(line)}</p>" for line in spread_lines(saved)]
        by_group = scores_of_groups(saved)
        if by_group is not None:
            parts.append(_groups(by_group, notes))
        for title, heads, rows in (overview.group_rows(saved), overview.quality_rows(saved)):
            if rows:
                parts.append(f"<h2>{title}</h2>" + _table(heads, rows, words=(0,)))
        parts += [f"<p>{escape(line)}</p>" for line in overview.hardest_lines(saved)]
    else:
        parts.append(f"<p>{overview.no_scores(saved)}</p>")
    parts.append(
        f"<details><summary>Configuration</summary><pre>{escape(results.as_json(saved.config))}</pre></details>"
    )
    parts[3:3] = [f"<p>{escape(note)}</p>" for note in notes]
    return _whole(saved, parts), notes


def page_of_explanations(found: Sequence[Explanation], top: int) -> tuple[str, list[str]]:
    """Return the page of validation examples with the training examples that moved their losses, and its notes."""
    notes: list[str] = []
    run = found[0].saved
    parts = [
        f"<h1>adamshap: {escape(str(run.config['dataset']['name']))}</h1>",
        f"<p>{escape(overview.title_of(run))}</p>",
    ]
    for one in found:
        head, *about = one.lines()
        parts.append(f"<h2>{escape(head)}</h2>{_explained_picture(one, notes)}")
        parts += [f"<p>{escape(line)}</p>" for line in (*about, *one.meaning())]
        parts.append(_extremes(one.saved, top, notes, total=True))
    notes = list(dict.fromkeys(notes))  # the same for each example
    parts[2:2] = [f"<p>{escape(note)}</p>" for note in notes]
    return _whole(run, parts), notes


def _explained_picture(one: Explanation, notes: list[str]) -> str:
    """Return the picture of a validation example."""
    pictures = overview.pictures_of_validation(one.saved)
    if pictures.missing:
        notes.append(pictures.missing)
    drawn = None if pictures.images is None else _pictures(pictures.images, [one.index], notes)
    if drawn is None:
        return ""
    label = escape(one.label)
    image = f'<img alt="row {one.index}, {label}" src="{drawn[one.index]}">'
    return f'<ul class="cards"><li>{image}<br><b>{label}</b></li></ul>'


def _whole(saved: SavedRun, parts: Sequence[str]) -> str:
    """Return the page with the content `parts`."""
    name = escape(str(saved.config["dataset"]["name"]))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>adamshap: {name}</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _plots(saved: SavedRun) -> str:
    text = io.StringIO()
    history = saved.history if len(saved.history["train_loss"]) else {}
    with plain_style():
        figure(saved.columns["score"], saved.columns["sgd_score"], history).savefig(text, format="svg")
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :].replace("<svg", '<svg role="img" aria-label="Scores and losses"', 1)
    return f'<div class="wide">{drawn}</div>'


def _groups(scores: GroupScores, notes: list[str]) -> str:
    title, heads, rows, reading = group_rows(scores)
    try:
        drawn = f'<div class="wide">{group_chart.draw(scores)}</div>'
    except Exception as error:  # as for the plots
        notes.append(f"No picture of the groups: {why_no_picture(error)}")
        drawn = ""
    lines = "<br>".join(map(escape, reading))
    return f"<h2>{escape(title)}</h2>{drawn}" + _table(heads, rows, words=(0,)) + f"<p>{lines}</p>"


def _extremes(saved: SavedRun, top: int, notes: list[str], *, total: bool = False) -> str:
    pictures = overview.pictures_of(saved)
    if pictures.missing:
        notes.append(pictures.missing)
    kinds = extremes_of(saved.columns["score"], top)
    heads = [f'<h2 class="{kind}">Most {kind} examples</h2>' for kind in kinds]
    drawn = None if pictures.images is None else _drawn(saved, pictures.images, list(kinds.values()), notes)
    if drawn is not None:
        cards = zip(heads, (_cards(saved, members, drawn) for members in kinds.values()), strict=True)
        return "\n".join(head + part for head, part in cards)
    tables = zip(heads, (_rows(saved, members, total) for members in kinds.values()), strict=True)
    inner = "\n".join(f"<div>{head}{part}</div>" for head, part in tables)
    return f'<div class="two">{inner}</div>'


def _drawn(saved: SavedRun, images_of: Images, groups: Sequence[Array], notes: list[str]) -> dict[int, str] | None:
    """Return the examples' pictures by row of the data set; or None, with a note, if they cannot be drawn."""
    wanted = [int(saved.columns["index"][row]) for members in groups for row in members]
    return _pictures(images_of, wanted, notes)


def _pictures(images_of: Images, wanted: Sequence[int], notes: list[str]) -> dict[int, str] | None:
    """Return the pictures of the rows `wanted` of the data set; or None, with a note, if they cannot be drawn."""
    arrays = {index: images_of.picture(index) for index in wanted}
    try:
        with plain_style():
            return {index: _png(image, images_of.greys) for index, image in arrays.items()}
    except Exception as error:  # as for the plots
        notes.append(f"No pictures: {why_no_picture(error)}")
        return None


def _cards(saved: SavedRun, members: Array, drawn: dict[int, str]) -> str:
    columns, cards = saved.columns, []
    names = label_names(columns["label"][members], saved.config["dataset"]["classes"])
    true = {flip["index"]: flip["from"] for flip in saved.config["flips"]}
    for row, name in zip(members, names, strict=True):
        index = int(columns["index"][row])
        flip = f"<br>flipped from {escape(true[index])}" if index in true else ""
        label = escape(name)
        group = f"<br>{escape(_shortened(columns['group'][row]))}" if "group" in columns else ""
        cards.append(
            f'<li><img alt="row {index}, {label}" src="{drawn[index]}"><br><b>{label}</b><br>'
            f"row {index}<br>{score_text(saved.weighting, columns['score'][row])}{_spread(saved, row)}"
            f"{group}{flip}</li>"
        )
    return f'<ul class="cards">{"".join(cards)}</ul>'


def _spread(saved: SavedRun, row: int) -> str:
    """Return the standard error of a mean score over several runs, and whether the example differs from the rest."""
    columns = saved.columns
    if "score_se" not in columns:
        return ""
    error = score_text(saved.weighting, columns["score_se"][row]).lstrip("+")
    return f"<br>± {error}{'<br>distinct' * bool(columns['distinct'][row])}"


def _png(image: Array, greys: str) -> str:
    from matplotlib.image import imsave

    content = io.BytesIO()
    imsave(content, image, cmap=greys, format="png")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def _rows(saved: SavedRun, members: Array, total: bool) -> str:
    fields = fields_of(saved, members, total=total)
    rows = [list(map(_shortened, row)) for row in zip(*(field.cells for field in fields), strict=True)]
    words = [place for place, field in enumerate(fields) if field.text]
    return _table([field.head for field in fields], rows, words)


def _shortened(cell: str) -> str:
    return cell if len(cell) <= LONGEST else cell[: LONGEST - 1] + "…"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[int]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        kinds = ("word" + " short" * (len(cell) <= UNBROKEN) + " long" * (len(cell) > LONG) for cell in cells)
        marked = (f' class="{kind}"' if number in words else "" for number, kind in enumerate(kinds))
        return "".join(f"<{tag}{mark}>{escape(cell)}</{tag}>" for mark, cell in zip(marked, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{line(heads, "th")}</tr>{body}</table></div>'
