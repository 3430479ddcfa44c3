"""Folders that `save_to_disk` of Hugging Face's library `datasets` wrote. Their images are converted as those of an image folder.

What a folder holds is read from its JSON files. The library, an extra of this package, is needed once, for the conversion.
"""

import json
import os
import re

from noisesched.data.datasets import readable
from noisesched.runtime.files import read_file, reason

_FILES = ("dataset_info.json", "state.json")  # of a split
_NAMED = {"Image": ("image", "img"), "ClassLabel": ("label", "labels")}  # a column that is taken if there are several
_INSTALL = "data.name='huggingface' needs the library datasets: pip install noisesched[huggingface]"


class Folder:
    """A folder written by `save_to_disk`. Raises ValueError or FileNotFoundError, in one line, for any other.

    splits   {name: its folder in this one}
    columns  (that of the images, that of the labels or None)
    classes  names of the classes; one if there are no labels
    listing  (name, bytes, time of the last change in ns) of all files: what the folder is known by
    """

    def __init__(self, path: str):
        if not path:
            raise ValueError("'huggingface' needs a path: the folder that dataset.save_to_disk(..) wrote")
        self.path, self.title = os.path.expanduser(path), f"Hugging Face folder {readable(path)}"
        if not os.path.isdir(self.path):
            raise FileNotFoundError(f"no such folder: {readable(path)}")
        if os.path.exists(os.path.join(self.path, "dataset_dict.json")):
            names = self._json("dataset_dict.json").get("splits")
            # A folder's name must be that of a split, and so leads nowhere else.
            fit = isinstance(names, list) and names and all(re.fullmatch(r"\w[\w-]*", str(name)) for name in names)
            if not fit or "all" in names:
                raise ValueError(f"{self.title}: dataset_dict.json names no splits that can be used")
            self.splits = {name: name for name in names}
        elif all(os.path.exists(os.path.join(self.path, name)) for name in _FILES):
            self.splits = {"train": "."}
        else:
            raise ValueError(f"{self.title} holds neither dataset_dict.json nor {' and '.join(_FILES)}: write it by save_to_disk")
        features = [self._json(folder, _FILES[0]).get("features") for folder in self.splits.values()]
        if not isinstance(features[0], dict) or features.count(features[0]) != len(features):
            raise ValueError(f"{self.title}: its splits have no columns, or not the same")
        for kind in _types(features):  # which the library calls by name
            if not (isinstance(kind, str) and re.fullmatch(r"[A-Z]\w*", kind)):
                raise ValueError(f"{self.title} has a column of the unknown type {kind!r}")
        self.columns = self._column(features[0], "Image"), self._column(features[0], "ClassLabel")
        if not self.columns[0]:
            raise ValueError(f"{self.title} has no column of type Image; its columns are {', '.join(features[0])}")
        self.classes = features[0][self.columns[1]].get("names") if self.columns[1] else ["images"]
        if not isinstance(self.classes, list) or not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"{self.title}: the classes of {self.columns[1]!r} have no names")
        self.listing = []
        for folder in sorted(self.splits.values()):
            for entry in sorted(os.scandir(os.path.join(self.path, folder)), key=lambda entry: entry.name):
                if entry.is_file():
                    self.listing.append((f"{folder}/{entry.name}", entry.stat().st_size, entry.stat().st_mtime_ns))
                elif not entry.is_dir():  # a pipe, which the library would wait for
                    raise ValueError(f"{readable(entry.path)} is neither a file nor a folder")

    def _json(self, *names):
        try:
            found = json.loads(read_file(os.path.join(self.path, *names), 2**26))
            if not isinstance(found, dict):
                raise ValueError("it is no object")
            return found
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{self.title}: {'/'.join(names)} cannot be read: {reason(error)}") from error

    def _column(self, features, kind):
        """The name of the column of a type, or None; ValueError if there are several, and none has the usual name."""
        found = [name for name, each in features.items() if isinstance(each, dict) and each.get("_type") == kind]
        usual = [name for name in _NAMED[kind] if name in found]
        if len(found) > 1 and not usual:
            raise ValueError(
                f"{self.title} has several columns of type {kind}, {', '.join(found)}: call the one to take {_NAMED[kind][0]!r}"
            )
        return next(iter(usual or found), None)

    def images(self) -> dict:
        """{split: its images, as `datasets.converted` takes them}. ValueError without the library."""
        try:
            import datasets
        except ImportError:
            raise ValueError(_INSTALL) from None
        image, label = self.columns
        found = {}
        for split, folder in self.splits.items():
            try:
                rows = datasets.load_from_disk(os.path.join(self.path, folder)).select_columns(
                    [column for column in self.columns if column]
                )
                if len(rows):
                    found[split] = _Images(split, rows.cast_column(image, datasets.Image(decode=False)), image, label)
            except Exception as error:  # of the library and of Arrow
                raise ValueError(f"{self.title}, {split}: {reason(error)}") from error
        if not found:
            raise ValueError(f"{self.title} holds no image")
        return found


class _Images:
    def __init__(self, split, rows, image, label):
        self.split, self.rows, self.image, self.label = split, rows, image, label

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        for number, row in enumerate(self.rows):
            name, label = f"{self.split}[{number}]", row[self.label] if self.label else 0
            content = (row[self.image] or {}).get("bytes")
            if content is None:  # a path would lead out of the folder
                raise ValueError(f"image {name} is not in the folder: there is nothing, or only a path")
            yield name, content, -1 if label is None else label


def _types(value):
    """All values of "_type" in nested dictionaries and lists."""
    if isinstance(value, dict):
        yield from (each for key, each in value.items() if key == "_type")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _types(each)
