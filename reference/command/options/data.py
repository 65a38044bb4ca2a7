"""Data: which examples to train and validate on, and how to read them."""

from typing import Annotated

import typer

from adamshap.reference.command import datasets, preparation
from adamshap.reference.command.spelling import Decimal as DecimalMark
from adamshap.reference.command.table import Missing as HowMissing
from adamshap.reference.command.texts import ExampleKind, TokenKind

PANEL = "Data"

Data = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA",
        show_default=False,
        help="digits, breast_cancer, wine, diabetes or simulated_sources; or a file: .npz with the arrays x and y (x"
        " may be images);"
        " .csv or .tsv with a header, or .parquet, with a label column and numbers; or two, x.npy,y.npy; or text: .txt,"
        " .md or .rst files, or a folder of them.",
    ),
]

Examples = Annotated[
    ExampleKind | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="KIND",
        show_default="passage",
        help="What an example of a text is: a passage, a line or a document, which is a whole file.",
    ),
]

Tokens = Annotated[
    TokenKind | None,
    typer.Option(
        rich_help_panel=PANEL, metavar="KIND", show_default="characters", help="Tokens of a text: characters or bytes."
    ),
]

FlipLabels = Annotated[
    float,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="F",
        help="Give this share of the training labels, 0 <= F < 1, a wrong class, to see whether low scores find them.",
    ),
]

Label = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="COLUMN",
        show_default="label",
        help="The label or target column of a .csv, .tsv or .parquet.",
    ),
]

Task = Annotated[
    datasets.TaskChoice,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="TASK",
        help="What to predict: classification, regression, or auto. With auto, text is classes and fractions in a y of"
        " shape (N, k) are quantities; numbers are classes, and where they look like quantities you are asked to say.",
    ),
]

Valid = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="FILE",
        show_default="held out from DATA",
        help="Examples to validate on, in a form that DATA may have; all of DATA is trained on.",
    ),
]

ValidFraction = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="F",
        show_default=str(preparation.VALIDATION_SHARE),
        help="Share of DATA, of each class, held out for validation, 0 < F < 1.",
    ),
]

ValidLimit = Annotated[
    int | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="N",
        min=1,
        show_default=f"{preparation.VALIDATION_LIMIT}, or none where the share is given",
        help="Hold out at most N examples: the time of each step grows with their number. At least one of each class is"
        " held out; the others are trained on.",
    ),
]

OneHot = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="COLUMN",
        show_default="none",
        help="A column of categories in a .csv, .tsv or .parquet: each category becomes a feature COLUMN=CATEGORY of 0"
        " and 1. May be given more than once.",
    ),
]

Id = Annotated[
    str | None,
    typer.Option(
        "--id",
        rich_help_panel=PANEL,
        metavar="COLUMN",
        show_default="none",
        help="A column of a .csv, .tsv or .parquet that names the rows, such as a customer number. It is shown with the"
        " results and not trained on.",
    ),
]

Drop = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="COLUMN",
        show_default="none",
        help="A column of a .csv, .tsv or .parquet not to train on. May be given more than once.",
    ),
]

Missing = Annotated[
    HowMissing | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="HOW",
        show_default="refused",
        help="Missing values in a .csv, .tsv or .parquet: mean fills in the column's mean over the training"
        " examples, drop leaves the row out.",
    ),
]

Group = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="COLUMN",
        show_default="none",
        help="Score groups of examples by this column of a .csv, .tsv or .parquet, or array of an .npz: source,"
        " annotator, month. It is no feature, unless --one-hot names it too.",
    ),
]

Sep = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="CHARACTER",
        show_default="recognised",
        help="The character that separates the columns of a .csv or .tsv; tab for a tab.",
    ),
]

Decimal = Annotated[
    DecimalMark | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="MARK",
        show_default="recognised",
        help="The decimal mark of the numbers in a .csv or .tsv: . or ,",
    ),
]
