"""Packs what an old Keras wrote: `python packing.py FOLDER ../data/keras-2.2.4.tar.xz`.

In: a folder with models, and beside each an `.npz` with its inputs and outputs. Out: one archive.
The invariant: models without numbers to compare are left out, and equal files give equal bytes.
"""

import os
import sys
import tarfile

import numpy as np


def pack(folder, archive):
    """Writes all pairs into one file."""
    names = sorted(os.listdir(folder))
    kept = set()
    for name in names:
        arrays = os.path.join(folder, os.path.splitext(name)[0] + ".npz")
        if name.endswith((".h5", ".keras")) and os.path.exists(arrays):
            with np.load(arrays) as found:
                if found.files:
                    kept |= {name, os.path.basename(arrays)}
    with tarfile.open(archive, "w:xz", preset=9) as file:
        for name in sorted(kept):
            info = tarfile.TarInfo(name)
            with open(os.path.join(folder, name), "rb") as content:
                info.size = os.fstat(content.fileno()).st_size
                file.addfile(info, content)


if __name__ == "__main__":
    pack(sys.argv[1], sys.argv[2])
