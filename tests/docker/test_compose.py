"""The compose file, checked against the project and the installed programs."""

import fnmatch
import os
import re
import subprocess
import sys
from pathlib import PurePosixPath

import prefect.settings
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from containers import DOCKERFILE, IMAGES, OURS, SERVICES, environment, program
from jobs import ROOT

IS_SECRET = re.compile(r"PASSWORD|SECRET|AUTH|ACCESS_KEY")
REFERENCE = re.compile(r"\$\{(\w+)(:\?[^}]+|:-[^}]*)?\}")


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_pinned_watched_and_bound_to_this_machine(service):
    one = SERVICES[service]
    if service in OURS:
        target = one["build"]["target"]
        assert target in IMAGES
        assert one["image"] == f"lyft-unet-pipeline/{target}:${{TAG:-latest}}"
        assert (ROOT / "docker" / one["build"]["context"]).resolve() == ROOT
        assert (ROOT / one["build"]["dockerfile"]).is_file()
    else:
        # As docs/containers.md promises.
        assert re.search(r":v?\d+\.\d+\.?\d*[^@]*@sha256:[0-9a-f]{64}$", one["image"])
    if one["restart"] == "unless-stopped":
        # Our services have the health check of their image, except Beam's worker, which has none.
        assert "healthcheck" in one or (service in OURS and target != "worker")
    else:
        assert one["restart"] == "on-failure:3"
        assert one["healthcheck"] == {"disable": True}
    # Our images name their own user; docs/containers.md tells whom the others run as.
    assert one.get("user") == {"postgres": "999:999"}.get(service)
    for port in one.get("ports", []):
        assert port.startswith("127.0.0.1:"), port
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert one["read_only"] is True
    assert not one.get("privileged")


def test_dependencies_of_services_can_be_met():
    for name, one in SERVICES.items():
        for other, how in one.get("depends_on", {}).items():
            condition = how["condition"]
            assert other in SERVICES
            if condition == "service_completed_successfully":
                assert SERVICES[other]["restart"] == "on-failure:3", f"{name} waits for ever"
            if condition == "service_healthy":
                assert SERVICES[other]["restart"] == "unless-stopped"
            waiting, awaited = one.get("profiles"), SERVICES[other].get("profiles")
            assert awaited is None or awaited == waiting, f"{other} is not started with {name}"


@pytest.mark.parametrize("service", ["prefect", "mlflow"])
def test_health_checks_use_the_servers_port(service):
    port = next(one for one in program(service) if one.startswith("--port=")).partition("=")[2]
    assert environment(service)["HEALTH_URL"].startswith(f"http://127.0.0.1:{port}/")
    assert SERVICES[service]["ports"][0].endswith(f":{port}")


def test_secrets_come_from_the_environment():
    for name in SERVICES:
        for key, value in environment(name).items():
            if IS_SECRET.search(key):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name}: {key}"
            assert "://" not in value or "@" not in value, f"{name}: {key} holds a password"
        assert not any("PASSWORD" in one or "SECRET" in one for one in program(name))


def test_env_example_lists_required_variables_without_values():
    example = (ROOT / "docker/.env.example").read_text(encoding="utf-8")
    text = (ROOT / "docker/compose.yaml").read_text(encoding="utf-8")
    asked = {name: how or "" for name, how in REFERENCE.findall(text)}
    must = {name for name, how in asked.items() if how.startswith(":?")}
    assert must
    set_here = dict(re.findall(r"^([A-Z]\w*)=(.*)$", example, flags=re.MULTILINE))
    assert set_here == dict.fromkeys(must, "")
    shown = dict(re.findall(r"^#([A-Z]\w*)=(.*)$", example, flags=re.MULTILINE))
    assert shown == {
        name: how.removeprefix(":-") for name, how in asked.items() if name not in must
    }


def test_git_ignores_the_env_file():
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert any(fnmatch.fnmatch("docker/.env", pattern) for pattern in ignored)
    assert not any(fnmatch.fnmatch("docker/.env.example", pattern) for pattern in ignored)


def test_settings_exist_in_the_installed_programs():
    import mlflow.environment_variables

    dockerfile = set(re.findall(r"\b(?:PREFECT|MLFLOW)_\w+(?==)", DOCKERFILE))
    compose = {key for name in SERVICES for key in environment(name)}
    names = {name for name in dockerfile | compose if name.startswith(("PREFECT_", "MLFLOW_"))}
    names -= {"PREFECT_DB_PASSWORD", "MLFLOW_DB_PASSWORD"}  # of docker/postgres-init.sh
    assert len(names) > 8
    for name in names:
        module = mlflow.environment_variables if name.startswith("MLFLOW") else prefect.settings
        assert hasattr(module, name), name


def test_database_credentials_match_those_of_the_servers():
    script = (ROOT / "docker/postgres-init.sh").read_text(encoding="utf-8")
    given = dict(re.findall(r'^own_database (\w+) "\$(\w+)"$', script, flags=re.MULTILINE))
    assert given == {"prefect": "PREFECT_DB_PASSWORD", "mlflow": "MLFLOW_DB_PASSWORD"}
    database = environment("postgres")
    assert set(given.values()) <= set(database)
    server = environment("prefect")
    assert (
        server["PREFECT_SERVER_DATABASE_NAME"]
        == server["PREFECT_SERVER_DATABASE_USER"]
        == "prefect"
    )
    assert server["PREFECT_SERVER_DATABASE_PASSWORD"] == database["PREFECT_DB_PASSWORD"]
    assert environment("mlflow")["PGPASSWORD"] == database["MLFLOW_DB_PASSWORD"]
    assert "--backend-store-uri=postgresql+psycopg2://mlflow@postgres:5432/mlflow" in program(
        "mlflow"
    )


def test_client_and_server_share_one_user_and_address():
    server = environment("prefect")["PREFECT_SERVER_API_AUTH_STRING"]
    for name in ("deploy", "cpu-worker", "gpu-worker", "jobs"):
        client = environment(name)
        assert client["PREFECT_API_AUTH_STRING"] == server
        assert client["PREFECT_API_URL"] == "http://prefect:4200/api"
        host = client["MLFLOW_TRACKING_URI"].removeprefix("http://")
        allowed = next(one for one in program("mlflow") if one.startswith("--allowed-hosts="))
        assert host in allowed.partition("=")[2].split(",")


@pytest.mark.parametrize("service", ["taskmanager-1", "taskmanager-2"])
def test_task_managers_find_the_jobmanager_and_the_files_of_a_job(service):
    options = dict(one[2:].split("=", 1) for one in program(service) if one.startswith("--"))
    leader = next(one for one in program("jobmanager") if one.startswith("--host="))
    assert options["host"] == service
    assert f"--host={options['jobmanager']}" == leader == "--host=jobmanager"
    # What Flink keeps on disk must not be in a tmpfs, which is memory.
    volumes = [
        one.split(":")[1] for one in SERVICES[service]["volumes"] if one.startswith("outputs:")
    ]
    assert PurePosixPath("/app", options["root"]).is_relative_to(*volumes)
    # A TaskManager's name in the cluster is that of its host.
    assert environment(service)["HEALTH_URL"] == f"http://jobmanager:8081/taskmanagers/{service}"
    # The workers have the driver's image and volumes, so that the paths it names exist there.
    for name in ("image", "volumes"):
        assert SERVICES[service][name] == SERVICES["jobs"][name]
    assert SERVICES[service]["volumes"] == SERVICES["cpu-worker"]["volumes"]
    for name, value in environment("cpu-worker").items():
        if name.startswith("AWS_"):
            assert environment(service)[name] == environment("jobs")[name] == value


@pytest.mark.parametrize(
    "service",
    ["prefect", "mlflow", "deploy", "cpu-worker", "gpu-worker", "jobmanager", "taskmanager-1"],
)
@pytest.mark.slow
def test_options_of_the_commands_exist(service):
    command = program(service)
    options = [one.partition("=")[0] for one in command if one.startswith("--")]
    start = ["-m", *command] if command[0] != "python" else command[1:]
    words = [one for one in start if one == "-m" or not one.startswith("-")]
    done = subprocess.run(
        [sys.executable, *words, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert options
    for option in options:
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", done.stdout), option


def test_scripts_are_executable_and_parse():
    for name in ("slim.sh", "postgres-init.sh"):
        assert os.access(ROOT / "docker" / name, os.X_OK)
        subprocess.run(["sh", "-n", str(ROOT / "docker" / name)], check=True)


def test_documented_runner_options_exist_in_beam():
    page = (ROOT / "docs/containers.md").read_text(encoding="utf-8")
    options = re.findall(r"^  (--runner=[^`]+?)\n```", page, flags=re.MULTILINE)
    assert options
    for one in options:
        given = one.replace("\\\n", " ").split()
        chosen = PipelineOptions(given).get_all_options(drop_default=True)
        assert {word.partition("=")[0][2:] for word in given} <= set(chosen)
