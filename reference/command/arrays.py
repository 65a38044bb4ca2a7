"""Reads .npz and .npy files: inputs and labels as NumPy arrays."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from adamshap.reference.command import images
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.grouping import check_group, group_names
from adamshap.reference.command.spelling import MISSING, some
from adamshap.reference.command.table import Table, eps_of, unreadable
from adamshap.reference.contract import Array, LazyRows


def read_archive(path: Path, group: str | None = None) -> Table:
    """Return the arrays x and y of a .npz file as a table, with the array `group` as the groups of its rows."""
    x, y, groups = _archived(path, group)
    table = _table(path, x, y)
    return table if group is None else replace(table, groups=_groups(table, group, groups))


def read_pair(argument: str, data: str) -> Table:
    """Return the arrays of two .npy files, named in `data`, as a table; the inputs stay in their file."""
    paths = [Path(part) for part in data.split(",")]
    if len(paths) != 2 or any(path.suffix.lower() != ".npy" for path in paths):
        raise CommandError(f"{argument}: got {data!r}; needs two files, the inputs and the labels: x.npy,y.npy")
    return _table(paths[0], *map(_mapped, paths))


def _table(path: Path, x: Array, y: Array) -> Table:
    source = repr(str(path))
    if x.dtype.kind not in "biuf":
        raise CommandError(f"{source}: x: got dtype {x.dtype}; needs numbers")
    if x.ndim < 2 or 0 in x.shape:
        raise CommandError(
            f"{source}: x: got shape {x.shape}; needs (N, features), or (N, height, width) or (N, channels, height,"
            " width) for images, not empty"
        )
    if y.dtype.kind not in "biufU":
        text = ": y.astype(str)" if y.dtype.kind == "S" else ""
        raise CommandError(f"{source}: y: got dtype {y.dtype}; needs numbers or text{text}")
    if y.shape[:1] != x.shape[:1] or y.ndim > 2 or 0 in y.shape or (y.ndim == 2 and y.dtype.kind == "U"):
        raise CommandError(
            f"{source}: y: got shape {y.shape} of dtype {y.dtype}; needs one label for each row of x, ({len(x)},),"
            f" or numbers ({len(x)}, targets) for a regression"
        )
    eps = eps_of(x.dtype), eps_of(y.dtype)
    if y.dtype.kind == "f":
        y = y.astype(np.float64)
        bad = ~np.isfinite(y.reshape(len(y), -1)).all(axis=1)
        if bad.any():
            raise CommandError(
                f"{source}: y, row {np.flatnonzero(bad)[0]}: got NaN or infinity as a label; needs finite numbers"
            )
    if y.dtype.kind == "U":
        lacks = np.isin(y, sorted(MISSING))
        if lacks.any():
            row = int(np.flatnonzero(lacks)[0])
            raise CommandError(
                f"{source}: y, row {row}: got {str(y[row])!r}, no label; needs one (a class of this name needs"
                " another name)"
            )
    layout, notes = _image(x.shape[1:])
    features = tuple("x[" + ",".join(map(str, place)) + "]" for place in np.ndindex(x.shape[1:]))
    rows = LazyRows(x)
    table_x = rows if isinstance(x, np.memmap) else rows[:]
    labels = y.tolist() if y.ndim == 1 else y
    return Table(path.stem, source, table_x, labels, features, layout, notes=notes, x_eps=eps[0], y_eps=eps[1])


def _groups(table: Table, name: str, values: Array) -> Array:
    if values.shape != (len(table.x),) or values.dtype.kind not in "biufU":
        raise CommandError(
            f"--group: the array {name!r} of {table.source} has shape {values.shape} of dtype {values.dtype}; needs"
            f" ({len(table.x)},), text or numbers, one for each row of x"
        )
    # A number that is not finite is no value: NaN is how NumPy spells a missing one.
    lacks = ~np.isfinite(values) if values.dtype.kind == "f" else np.isin(values.astype(str), sorted(MISSING))
    kept = [None if bad else value for value, bad in zip(values.tolist(), lacks, strict=True)]
    return group_names(table.source, name, kept)


def _image(shape: tuple[int, ...]) -> tuple[images.Layout | None, tuple[str, ...]]:
    """Return the layout of images, or None; and a note on arrays of another shape."""
    layout = images.layout_of(shape)
    if layout is None:
        return None, (f"each example is {shape}, taken as {np.prod(shape)} features",) if len(shape) > 1 else ()
    if len(layout) == 2:
        return layout, ()
    channels, height, width = images.size_of(layout)
    pictures = "" if images.is_drawable(layout) else "; pictures are drawn of 1 or 3"
    return layout, (f"each example is an image of {height} by {width} with {channels} channels{pictures}",)


def _mapped(path: Path) -> Array:
    """Return the array as a memory map, since it may be larger than memory."""
    source, needs = repr(str(path)), "needs a .npy file, as numpy.save writes it"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise unreadable(source, error) from error
    except Exception as error:  # as for .npz
        raise _broken(source, error, needs) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise CommandError(f"{source}: got an archive of arrays; {needs}")
    return array


def _archived(path: Path, group: str | None) -> tuple[Array, Array, Array]:
    """Return x, y and the array `group`, or an empty one without a group."""
    source = repr(str(path))
    needs = "needs a .npz file with the arrays x and y, as numpy.savez writes it"
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise CommandError(f"{source}: got a single array; {needs}")
            x, y = (_name_of(source, archive.files, name, needs) for name in "xy")
            if group is not None:
                check_group(source, archive.files, y, group)
            return archive[x], archive[y], np.empty(0) if group is None else archive[group]
    except OSError as error:
        raise unreadable(source, error) from error
    except CommandError:
        raise
    except Exception as error:
        # Untrusted bytes, read by zipfile, zlib and NumPy: a broken file can raise almost anything.
        raise _broken(source, error, needs) from error


def _name_of(source: str, names: list[str], wanted: str, needs: str) -> str:
    """Return the entry of `names` that is `wanted` in lower or upper case."""
    found = next((name for name in (wanted, wanted.upper()) if name in names), None)
    if found is not None:
        return found
    missing = [name for name in ("x", "y") if not {name, name.upper()} & set(names)]
    if {"indices", "indptr", "shape"} <= set(names):
        needs = 'needs a dense array: numpy.savez("NEW.npz", x=scipy.sparse.load_npz("OLD.npz").toarray(), y=y)'
    elif len(names) > 1:
        pair = [
            next((name for name in names if name.lower() in (f"{part}_train", f"train_{part}")), "...") for part in "xy"
        ]
        needs += f': numpy.savez("NEW.npz", x=old["{pair[0]}"], y=old["{pair[1]}"]); a file for --valid likewise'
    raise CommandError(f"{source}: no array {some(missing)} among {some(names) or 'none'}; {needs}")


def _broken(source: str, error: Exception, needs: str) -> CommandError:
    """Return the error for a file that NumPy cannot read, without NumPy's advice to allow pickles."""
    what = (
        "got Python objects, or no NumPy file"
        if "pickle" in str(error) or "Python objects" in str(error)
        else f"{type(error).__name__}: {error}"
    )
    if what.startswith("got"):
        needs += "; objects become text or numbers by y.astype(str) or x.astype(float)"
    return CommandError(f"{source}: {what}; {needs}")
