"""Storages: what a URL means, and the same studies on a real PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from studies import assert_exact, attack, open_study, tune

from kdbench.errors import UserError
from kdbench.tune.storage import connect, file_of, shown


def test_a_url_names_a_file_or_not() -> None:
    assert file_of("sqlite:///runs/tune.db") == Path("runs/tune.db")
    assert file_of("sqlite:////abs/tune.db") == Path("/abs/tune.db")
    assert file_of("journal:shared/tune.log") == Path("shared/tune.log")
    assert file_of("journal:///abs/tune.log") == Path("/abs/tune.log")
    assert file_of("postgresql://host/x") is None


def test_passwords_are_not_shown() -> None:
    assert shown("postgresql://me:secret@host/x") == "postgresql://me:***@host/x"
    assert shown("journal:x") == "journal:x"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("tune.db", "expects sqlite:///FILE"),
        ("sqlit:///x", r"did you mean 'sqlite'"),
        ("journal:", "names no file"),
        ("sqlite:////proc/no/x.db", "cannot be opened"),
        ("postgresql://localhost:1/x", "cannot be opened"),
    ],
)
def test_what_cannot_be_opened_is_a_sentence(url: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        connect(url)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_database_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_text("no database, " * 100)
    with pytest.raises(UserError, match="cannot be opened: file is not a database"):
        connect(f"sqlite:///{path}")
    assert path.read_text().startswith("no database")


def binaries() -> Path | None:
    """Of a PostgreSQL server, as Debian puts them."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    named = shutil.which("initdb")
    return found[-1].parent if found else Path(named).parent if named else None


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory) -> Iterator[str]:
    """The URL of an empty database on a server of its own."""
    pytest.importorskip("psycopg2", reason="needs psycopg2")
    folder = binaries()
    if folder is None:
        pytest.skip("needs a PostgreSQL server's binaries (Debian: postgresql)")
    base = tmp_path_factory.mktemp("pg")
    user: dict = {}
    if os.getuid() == 0:  # the server refuses root
        import pwd

        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("needs the account postgres: a PostgreSQL server does not run as root")
        for parent in (base, *base.parents):
            if parent.stat().st_uid == 0 and parent != Path("/") and "pytest" in parent.name:
                parent.chmod(0o755)
        os.chown(base, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"check": True, "capture_output": True, "cwd": base, **user}
    subprocess.run([folder / "initdb", "-D", base / "data", "-U", "me", "-A", "trust"], **common)
    options = f"-p {port} -k {base} -c fsync=off -c listen_addresses=127.0.0.1"
    control = [folder / "pg_ctl", "-D", base / "data", "-w"]
    subprocess.run([*control, "-l", base / "log", "-o", options, "start"], **{**common, "capture_output": False})
    try:
        subprocess.run([folder / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "me", "tune"], **common)
        yield f"postgresql://me@127.0.0.1:{port}/tune"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **common)


@pytest.mark.slow
def test_four_workers_and_kills_on_postgresql(postgresql: str, tmp_path: Path) -> None:
    assert len(tune(open_study(postgresql, name="alone"), 5)) == 5
    study = attack(postgresql, tmp_path, workers=4, budget=16, kills=4, seconds=0.3)
    assert_exact(study, 16, 4)


@pytest.mark.slow
def test_the_dashboard_opens_the_same_storage(tmp_path: Path) -> None:
    pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard")
    import json
    import time
    import urllib.request

    url = f"sqlite:///{tmp_path / 'tune.db'}"
    tune(open_study(url), 4)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "optuna_dashboard._cli", "--port", str(port), url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        for _ in range(100):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as answer:
                    studies = json.load(answer)["study_summaries"]
                break
            except OSError:
                time.sleep(0.5)
        assert [study["study_name"] for study in studies] == ["s/p/m@0"]
    finally:
        server.kill()
        server.communicate()
