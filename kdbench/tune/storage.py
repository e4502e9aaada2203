"""Where studies live: `--storage` -> an Optuna storage that several processes may share.

SQLite is opened so that a claim is exclusive (Optuna relies on SELECT ... FOR UPDATE, which SQLite ignores); a journal
file's torn last line is cut off by the next writer, under the journal's lock.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.engine import make_url

from kdbench.errors import UserError, did_you_mean

HEARTBEAT = 10  # seconds between signs of life in a database
GRACE = 90  # seconds without one, after which a trial is taken from its worker
EXTRAS = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}  # scheme -> kdbench's extra with its driver
DRIVERS = {"postgresql": "postgresql+psycopg2", "mysql": "mysql+pymysql", "mariadb": "mariadb+pymysql"}
FORMS = (
    "sqlite:///FILE, journal:FILE, postgresql://USER:PASSWORD@HOST/DATABASE, mysql://USER:PASSWORD@HOST/DATABASE "
    "or grpc://HOST:PORT"
)
SCHEMES = ("sqlite", "journal", "postgresql", "mysql", "mariadb", "grpc")


def default_url(runs: Path) -> str:
    return f"sqlite:///{runs / 'tune.db'}"


def file_of(url: str) -> Path | None:
    """The file of a storage that is one."""
    scheme, _, rest = url.partition(":")
    if scheme == "journal":
        return Path(rest.removeprefix("//")) if rest.removeprefix("//") else None
    if scheme.partition("+")[0] == "sqlite" and rest.startswith("///"):
        return Path(rest[3:])
    return None


def shown(url: str) -> str:
    """The URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return url


def connect(url: str) -> BaseStorage:
    """Open a storage, making it where it is a file that is not there yet.

    Raises:
        UserError: the URL is of no known form, its driver is not installed, or the storage cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    scheme = url.partition(":")[0].partition("+")[0]
    if ":" not in url or scheme not in SCHEMES:
        raise UserError(f"--storage {shown(url)}: expects {FORMS}{did_you_mean(scheme, SCHEMES)}")
    path = file_of(url)
    if scheme in ("sqlite", "journal") and (path is None or not path.name):
        raise UserError(f"--storage {url}: names no file; expects {FORMS}")
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        if scheme == "journal":
            return _journal(path)  # type: ignore[arg-type]
        return _proxy(url) if scheme == "grpc" else _database(url, scheme)
    except (ModuleNotFoundError, ImportError) as error:
        extra = EXTRAS.get(scheme, scheme)
        raise UserError(
            f"--storage {shown(url)}: its driver is not installed: pip install 'kdbench[{extra}]'"
        ) from error
    except (OSError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError, ValueError) as error:
        raise UserError(f"--storage {shown(url)}: cannot be opened: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """The innermost cause, on one line."""
    while (inner := getattr(error, "orig", None) or error.__cause__) is not None:
        error = inner
    return " ".join(str(error).split()) or type(error).__name__


# databases -----------------------------------------------------------------------------------------------------------
def _database(url: str, scheme: str) -> BaseStorage:
    if (named := url.partition(":")[0]) in DRIVERS:
        url = DRIVERS[named] + url.removeprefix(named)
    options: dict[str, Any] = {"pool_pre_ping": True}
    if scheme == "sqlite":
        options = {"connect_args": {"timeout": 60}}
    for attempt in range(5):
        try:
            storage = RDBStorage(url, engine_kwargs=options, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
            break
        except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
            if attempt == 4 or not _just_made(url):
                raise
            time.sleep(0.3 * (attempt + 1))  # another process is making the tables right now
    if scheme == "sqlite":
        _exclusive(storage.engine)
    return get_storage(storage)


def _just_made(url: str) -> bool:
    """Whether the database answers at all: then only its tables were in the way."""
    try:
        engine = sqlalchemy.create_engine(url)
        with engine.connect():
            return True
    except sqlalchemy.exc.SQLAlchemyError:
        return False


def _exclusive(engine: sqlalchemy.Engine) -> None:
    """Every transaction takes the write lock as it begins, so that what it reads still holds when it writes."""

    def opened(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # sqlite3 must not begin transactions of its own
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    sqlalchemy.event.listen(engine, "connect", opened)
    sqlalchemy.event.listen(engine, "begin", begin)
    engine.dispose()  # connections that were opened before know nothing of it


# journal -------------------------------------------------------------------------------------------------------------
class MendingLock(JournalFileSymlinkLock):
    """Optuna's own lock, so that other programs may share the file; who gets it cuts off a torn last line first."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = Path(path)

    def acquire(self) -> bool:
        taken = super().acquire()
        mend(self.path)
        return taken


def mend(path: Path) -> bool:
    """Cut off what a killed writer left: a last line without its end, or one that is no JSON. True if there was one.

    Only under the journal's lock: a line that is being written looks the same.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    if size == 0:
        return False
    with path.open("r+b") as file:
        length = min(size, 1 << 16)
        while True:
            file.seek(size - length)
            tail = file.read(length)
            start = tail.rstrip(b"\n").rfind(b"\n") + 1 if tail.endswith(b"\n") else tail.rfind(b"\n") + 1
            if start or length == size:
                break
            length = min(size, 2 * length)
        last = tail[start:]
        if last.endswith(b"\n") and _is_json(last):
            return False
        file.truncate(size - len(last))
        file.flush()
        os.fsync(file.fileno())
    return True


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _journal(path: Path) -> BaseStorage:
    whole = str(path.resolve())  # the lock is a symbolic link to it
    backend = JournalFileBackend(whole, lock_obj=MendingLock(whole))
    return JournalStorage(backend)


def _proxy(url: str) -> BaseStorage:
    import grpc
    from optuna.storages import GrpcStorageProxy

    host, _, port = url.removeprefix("grpc://").rstrip("/").rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--storage {url}: expects grpc://HOST:PORT")
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=10)
        except grpc.FutureTimeoutError as error:
            raise UserError(f"--storage {url}: nobody answers there: start Optuna's run_grpc_proxy_server") from error
    return GrpcStorageProxy(host=host, port=int(port))
