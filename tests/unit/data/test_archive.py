"""Folders and tars of images: what is read, and what is refused."""

import io
import tarfile

import pytest

from ml.data import archive
from ml.data.archive import MAX_BYTES, entries, labelled_images
from ml.errors import DataError


def _tar(path, members):
    """A tar of (TarInfo or name, bytes)."""
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def _special_member(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"])
def test_a_folder_and_a_tar_of_it_give_the_same_images(kind, tmp_path):
    folder = tmp_path / "set"
    for name in ("train/a/2.jpg", "train/a/1.JPG", "test/b/3.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    compression = {"tar": "", "tgz": "gz"}.get(kind, kind.removeprefix("tar."))
    with tarfile.open(tmp_path / f"set.{kind}", f"w:{compression}") as tar:
        tar.add(folder, "set")
    expected = {(i.split, i.label, i.name, i.content) for i in labelled_images(folder)}
    assert expected == {
        (i.split, i.label, i.name, i.content) for i in labelled_images(tmp_path / f"set.{kind}")
    }
    assert ("train", "a", "1.JPG", b"train/a/1.JPG") in expected
    assert len(expected) == 3


def test_hidden_files_and_other_files_are_skipped(tmp_path):
    for name in ("a/b/._1.jpg", "a/b/notes.txt", ".git/b/1.jpg", "a/b/1.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [str(entry.path) for entry in entries(tmp_path)] == ["a/b/1.jpg"]


@pytest.mark.parametrize(
    "member",
    [
        "../outside/a/1.jpg",
        "a/../../b/1.jpg",
        "/etc/a/1.jpg",
        _special_member("a/b/1.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        _special_member("a/b/1.jpg", tarfile.LNKTYPE, "../../etc/passwd"),
        _special_member("a/b/1.jpg", tarfile.CHRTYPE),
    ],
    ids=["parent", "parent inside", "absolute", "symlink", "hard link", "device"],
)
def test_a_hostile_member_stops_the_import(tmp_path, member):
    path = _tar(tmp_path / "bad.tar", [("a/b/0.jpg", b"good"), (member, b"")])
    with pytest.raises(DataError, match="member"):
        list(entries(path))
    assert list(tmp_path.iterdir()) == [path]


def test_a_member_whose_header_gives_a_huge_size_is_refused_before_it_is_read(tmp_path):
    header = tarfile.TarInfo("a/b/1.jpg")
    header.size = MAX_BYTES + 1
    path = tmp_path / "huge.tar"
    path.write_bytes(header.tobuf() + b"\0" * 10240)
    with pytest.raises(DataError, match="the limit is"):
        list(entries(path))


def test_a_member_of_the_largest_size_is_read_and_an_empty_one_too(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 5)
    path = _tar(tmp_path / "set.tar", [("a/b/1.jpg", b"12345"), ("a/b/2.jpg", b"")])
    assert [entry.content for entry in entries(path)] == [b"12345", b""]
    path = _tar(tmp_path / "set.tar", [("a/b/1.jpg", b"123456")])
    with pytest.raises(DataError, match="holds 6 bytes; the limit is 5"):
        list(entries(path))


def test_a_member_s_headers_are_read_up_to_a_mebibyte_with_those_of_all_members():
    reader = archive._TarReader(io.BytesIO(bytes(2**22)), 2**22)
    assert len(reader.read(2**19)) == len(reader.read(2**19)) == 2**19
    reader.begin_header({"ab": "cde"})
    reader.read(2**20 - 5)
    with pytest.raises(tarfile.ReadError, match="the headers of a member exceed 1048576 bytes"):
        reader.read(1)


# As long as a key in S3 may be.
LONGEST = 5 * ("a" * 200 + "/") + "b" * 15 + ".jpg"


@pytest.mark.parametrize("name", ["a/b/my photo.jpg", "a/b/~.jpg", "a/b/\xa0.jpg", "a/b/\xfc.jpg", LONGEST])  # fmt: skip
def test_a_name_may_have_spaces_and_letters_of_any_language(name, tmp_path):
    (entry,) = entries(_tar(tmp_path / "set.tar", [(name, b"x")]))
    assert entry.path.as_posix() == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a/b/\x1f.jpg", "control characters"),
        ("a/b/\x7f.jpg", "control characters"),
        ("a/b/\x9f.jpg", "control characters"),
        (f"b{LONGEST}", "a name of 1025 bytes; the limit is 1024"),
    ],
)
def test_a_name_of_control_characters_or_too_long_for_s3_is_refused(name, reason, tmp_path):
    with pytest.raises(DataError, match=reason):
        list(entries(_tar(tmp_path / "set.tar", [(name, b"x")])))


def test_a_link_out_of_a_folder_is_refused(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    folder = tmp_path / "set" / "train" / "a"
    folder.mkdir(parents=True)
    (folder / "1.jpg").symlink_to(secret)
    with pytest.raises(DataError, match="leads out"):
        list(entries(tmp_path / "set"))


def test_a_damaged_tar_and_other_files_are_explained(tmp_path):
    path = _tar(tmp_path / "cut.tar", [(f"a/b/{n}.jpg", b"x" * 5000) for n in range(10)])
    path.write_bytes(path.read_bytes()[:20000])
    with pytest.raises(DataError, match="damaged tar"):
        list(entries(path))
    (tmp_path / "text.txt").write_text("no")
    with pytest.raises(DataError, match="neither a folder nor a tar"):
        list(entries(tmp_path / "text.txt"))
    with pytest.raises(DataError, match="does not exist"):
        list(entries(tmp_path / "none"))
