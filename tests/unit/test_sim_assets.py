"""LIBERO's assets: found, unpacked safely, and labelled for what they are."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from dtvla.sim import assets
from dtvla.sim.bootstrap import SimulatorUnavailable
from dtvla.sim.env import SimEnv


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; nobody has named any assets."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DTVLA_CACHE", str(folder))
    monkeypatch.delenv(assets.VARIABLE, raising=False)
    return folder / "assets"


def write_parts(folder: Path) -> Path:
    for part in assets.PARTS:
        (folder / part).mkdir(parents=True)
        (folder / part / "thing.xml").write_text(f"<mujoco model='{part}'/>")
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_parts(tmp_path / "mine")


def archive(path: Path, folder: Path, inside: str = "") -> Path:
    with tarfile.open(path, "w:xz") as tar:
        tar.add(folder, arcname=inside)
    return path


def test_without_assets_a_sentence_says_what_to_do_and_that_the_embedded_suite_needs_none() -> None:
    with pytest.raises(
        SimulatorUnavailable, match=r"dtvla assets fetch.*DTVLA_ASSETS.*'embedded' needs none"
    ):
        SimEnv("libero_object", 0)


def test_a_named_folder_is_used_and_counts_as_a_stand_in(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(assets.VARIABLE, str(whole))
    assert assets.find() == whole
    assert assets.label().startswith("stand-in assets (folder mine, ")


def test_a_folder_that_is_not_whole_is_refused_with_what_it_lacks(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole / "scenes/thing.xml").unlink()
    (whole / "scenes").rmdir()
    monkeypatch.setenv(assets.VARIABLE, str(whole))
    with pytest.raises(SimulatorUnavailable, match="not whole: no scenes"):
        assets.find()


def test_a_path_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(assets.VARIABLE, "no/such/place")
    with pytest.raises(SimulatorUnavailable, match="No assets at no/such/place"):
        assets.find()


@pytest.mark.parametrize("inside", ["", "libero-assets"])
def test_a_named_archive_is_unpacked_once(
    inside: str, whole: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(assets.VARIABLE, str(archive(tmp_path / "pack.tar.xz", whole, inside)))
    folder = assets.find()
    assert folder.parent == cache
    born = folder.stat().st_mtime_ns
    assert assets.find() == folder
    assert folder.stat().st_mtime_ns == born
    assert [path.name for path in cache.iterdir()] == [folder.name], "nothing half-done stays"
    assert assets.label().startswith("stand-in assets (pack.tar.xz, ")


def test_one_set_of_files_has_one_digest_wherever_it_lies(whole: Path, tmp_path: Path) -> None:
    got = assets.install(archive(tmp_path / "pack.tar.xz", whole))
    assert got.digest == assets.describe(whole).digest
    assert got.files == len(assets.PARTS)


def test_what_was_installed_is_used_from_then_on_and_progress_is_told(whole: Path, tmp_path: Path) -> None:
    shares: list[float] = []
    got = assets.install(archive(tmp_path / "pack.tar.xz", whole), shares.append)
    assert assets.find() == got.folder
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert assets.install(whole).folder == whole
    assert assets.find() == whole


@pytest.mark.parametrize("trick", ["../outside.txt", "/tmp/dtvla_outside.txt", "link"])
def test_an_archive_that_reaches_outside_its_folder_is_refused(
    trick: str, whole: Path, tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo(trick)
        if trick == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "../../../.."
            tar.addfile(member)
        else:
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
        tar.add(whole, arcname="")
    if trick.startswith("/"):  # tar drops the leading slash: the file then lies inside, harmless
        assets.install(path)
        assert not Path(trick).exists()
        return
    with pytest.raises(SimulatorUnavailable, match="not trusted"):
        assets.install(path)
    assert list(tmp_path.rglob("outside.txt")) == []
    assert list(cache.iterdir()) == []


def test_a_cut_off_archive_leaves_nothing_behind(whole: Path, tmp_path: Path, cache: Path) -> None:
    path = archive(tmp_path / "pack.tar.xz", whole)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(SimulatorUnavailable, match="cannot be unpacked"):
        assets.install(path)
    assert list(cache.iterdir()) == []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub whose download a test sets."""
    fake = SimpleNamespace(HF_ASSETS_REPO_ID="some/assets", snapshot_download=None)
    monkeypatch.setattr(assets, "import_libero", lambda: None)
    monkeypatch.setattr(assets.importlib, "import_module", lambda name: fake)
    return fake


def test_only_what_came_from_the_hub_and_was_not_touched_is_labelled_as_the_hubs(
    hub: SimpleNamespace,
) -> None:
    def download(repo_id: str, repo_type: str, local_dir: str) -> None:
        assert (repo_id, repo_type) == ("some/assets", "dataset")
        write_parts(Path(local_dir))
        (Path(local_dir) / ".cache").mkdir()
        (Path(local_dir) / ".cache" / "noise").write_text("not an asset")

    hub.snapshot_download = download
    got = assets.install()
    assert assets.label() == f"hub assets {got.digest[:12]}"
    (got.folder / "scenes/thing.xml").write_text("<mujoco model='changed'/>")
    assert assets.label().startswith("stand-in assets (some/assets, changed since, ")


def test_a_hub_out_of_reach_is_a_sentence_with_the_other_way(hub: SimpleNamespace) -> None:
    def download(**options: str) -> None:
        raise OSError("Name or service not known\nand a long story")

    hub.snapshot_download = download
    with pytest.raises(
        SimulatorUnavailable, match=r"some/assets.*OSError: Name or service.*--assets PATH"
    ) as told:
        assets.install()
    assert "long story" not in str(told.value)
