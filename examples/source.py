"""A source of tasks of your own: a folder with one folder of .txt files for every class, as many corpora come.

A source is a function (rest, options) -> Loaded; `rest` is what follows its name in a SPEC. From the folder of this
file: clsprobe run --task source:load:PATH/TO/CORPUS
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from clsprobe import InputError, Loaded, SourceOptions, Task, check_source
from clsprobe.analysis.sources.lines import find_path


def load(rest: str, options: SourceOptions) -> Loaded:
    """A task of the files CORPUS/CLASS/*.txt. Raises InputError for whatever the user can mend."""
    folder = find_path(rest, "folders:reviews")  # its errors say what is near a mistyped path
    if not folder.is_dir():
        raise InputError(rest, "is no folder", "Name the folder that holds a folder for every class")
    texts, labels, empty = [], [], 0
    paths = sorted(folder.glob("*/*.txt"))  # sorted: no two machines list files in the same order
    for path in paths:
        try:
            text = path.read_text(encoding=options.encoding).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(str(path), f"cannot be read ({error})", "Mend the file, or pass --encoding") from None
        if text:
            texts.append(" ".join(text.split()))
            labels.append(path.parent.name)
        elif options.drop_empty:
            empty += 1
        else:
            raise InputError(str(path), "the file is empty", "Remove it, or pass --drop-empty")
    if len(set(labels)) < 2:
        raise InputError(rest, "holds fewer than two folders with .txt files", "Name the folder above the classes")
    task = Task(f"folders:{folder.resolve().name}:class", texts, labels)
    return Loaded([task], len(paths), {"empty text": empty} if empty else {})  # rows in = used + left out


if __name__ == "__main__":
    with TemporaryDirectory() as corpus:
        for number, text in enumerate(["a fine film", "a dull film", "", "fine", "dull", "so fine", "so dull"]):
            path = Path(corpus, "good" if "fine" in text else "bad", f"{number}.txt")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        check_source(load, corpus, SourceOptions(drop_empty=True))
        print(load(corpus, SourceOptions(drop_empty=True)))
