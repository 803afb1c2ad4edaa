"""Each promise of the README has a test that fails without it: the safety list, the decision table, troubleshooting.

A line is named by words that stand in it alone. Whoever adds a line adds its test here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import PORT_MANAGER, ROOT, RUN_BACKEND

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ") and "|---" not in line][1:]


# A promise of the README: the tests that guard it, by module, each name without its "test_".
SAFETY = {
    "is run by a manager": "guards.a_service_or_a_container_is_left_alone guards.what_a_manager_runs_stays "
    "managers.supervisord managers.pm2_in_cluster_mode containers.a_port_of_a_container_is_named_and_left_alone "
    "containers.a_unit_is_named_and_left_alone other_systems.macos_what_launchd_runs_stays",
    "cannot be seen": "guards.who_cannot_be_told_stays guards.a_normal_user_stops_nobody_elses",
    "is the system itself": "containers.the_main_process_of_the_container "
    "safety_conditions.no_signal_for_a_pid_below_2",
    "is a tunnel": "guards.who_must_stay guards.who_holds_the_port_of_a_container_stays "
    "other_systems.who_holds_ports_for_others",
    "could not be looked at": "safety_conditions.out_of_descriptors_the_port_counts_as_held guards.kernel_threads_live",
    "is this very process": "guards.we_and_our_ancestors_live guards.a_parent_that_ends_leaves_its_child_to_another",
    "runs on a terminal of its own": "guards.who_must_stay",
    "listens on IPv4 alone": "guards.who_must_stay guards.only_what_conflicts_goes "
    "guards.the_same_link_local_address_on_another_interface",
    "is another user's": "guards.who_must_stay safety_conditions.whose_it_is_when_several_users_hold_it "
    "safety_conditions.a_holder_whose_user_is_not_told_is_not_ours",
    "is not what the [policy]": "guards.a_policy_that_stops_nobody projects.whose_a_server_is",
    "is a server of another project": "projects.another_projects_server_is_refused_without_a_terminal "
    "projects.whose_a_server_is projects.a_person_who_names_the_port_means_it",
    "would take something else": "managers.an_editor_s_server_with_a_terminal_stays "
    "projects.another_port_would_close_too",
}
DECISIONS = {
    "| is free": "free_or_not.free_port_is_available",
    "| may be stopped": "guards.the_names_of_development_and_all_others stopping.the_words_of_a_take_over",
    "[another project]": "projects.it_is_asked_about_on_a_terminal",
    "[must stay]": "guards.one_who_must_stay_saves_the_others",
    "| anything else": "guards.the_names_of_development_and_all_others",
    "| cannot be had": "free_or_not.the_troubles_have_messages_of_their_own",
}
TROUBLES = {
    "runs it; stop it with": "guards.a_service_or_a_container_is_left_alone",
    "that you may not see": "guards.a_normal_user_stops_nobody_elses",
    "this container's main process": "containers.the_main_process_of_the_container",
    "it is a tunnel": "other_systems.who_holds_ports_for_others",
    "AirPlay": "other_systems.macos_who_stays",
    "it is an ancestor": "guards.we_and_our_ancestors_live",
    "it runs on a terminal": "guards.who_must_stay",
    "it listens on IPv4": "guards.who_must_stay",
    "whether its": "guards.only_what_conflicts_goes",
    "it belongs to user": "guards.root_leaves_other_users_alone",
    "take the next free port": "projects.another_projects_server_is_refused_without_a_terminal",
    "end a terminal": "managers.an_editor_s_server_with_a_terminal_stays",
    "close port": "projects.another_port_would_close_too",
    "was taken again": "stopping.a_loop_that_starts_its_server_again_is_named",
    "local end of a connection": "guards.a_client_whose_own_end_is_our_port_is_named_and_lives",
    "nobody who may be seen": "other_systems.nobody_is_found_who_holds_the_port",
    "nothing on this system": "tools.when_none_can_tell_the_port_is_held",
    "even when forced": "stopping.the_exit_of_one_who_cannot_be_forced_is_reported",
    "no permission": "free_or_not.no_permission_for_real",
    "not an address": "free_or_not.the_troubles_have_messages_of_their_own",
    "10013": "other_systems.windows_a_reserved_range_has_no_holder",
    "outside development": "python_calls.errors_carry_what_a_caller_needs",
    "PORT_MANAGER_POLICY is": "guards.a_policy_that_stops_nobody",
    "No app was found": "run_backend.nobody_is_stopped_where_there_is_nothing_to_start",
    "not installed": "run_backend.the_first_installed_server",
}
LISTS = {
    "safety": (SAFETY, re.findall("(?m)^- .+", section("Who is never stopped").partition("\n\nNobody")[0])),
    "decisions": (DECISIONS, rows(section("What happens"))),
    "troubleshooting": (TROUBLES, rows(section("Troubleshooting"))),
}


def source(test: str) -> str:
    """The module of a test."""
    file = ROOT / "tests" / f"test_{test.partition('.')[0]}.py"
    return file.read_text(encoding="utf-8") if file.exists() else ""


@pytest.mark.parametrize("name", LISTS)
def test_each_line_is_named_by_tests_that_exist(name):
    promises, lines = LISTS[name]
    assert len(lines) == len(promises)
    for line in lines:
        assert len([words for words in promises if words in line]) == 1, line
    named = {test for tests in promises.values() for test in tests.split()}
    assert [test for test in named if f"\ndef test_{test.partition('.')[2]}(" not in source(test)] == []


def test_the_sentences_are_tested():
    """The longest words of each that never change stand in the module of its test."""
    for words, test in TROUBLES.items():
        (row,) = [line for line in LISTS["troubleshooting"][1] if words in line]
        for quote in re.findall("`([^`]+)`", row.split("|")[1]):
            sentence = max(re.split(" also |…", quote), key=len).strip(" ;:")
            assert sentence.lower() in source(test).lower(), sentence


@pytest.mark.parametrize("table", ["Troubleshooting", "中文说明"])
def test_troubleshooting_quotes_messages_that_exist(table):
    code = "".join(Path(file).read_text(encoding="utf-8") for file in (PORT_MANAGER, RUN_BACKEND))
    code = re.sub(r'"\s*\+?\s*\(?f?"', "", code)  # a text that continues on the next line
    code = re.sub(r"\{[^{}\n]*\}", "…", code)
    cells = [line.split("|")[1] for line in rows(section(table).partition("以及该怎么做")[2] or section(table))]
    quotes = [quote for cell in cells for quote in re.findall("`([^`]+)`", cell)]
    assert len(quotes) > 9
    for quote in quotes:
        for part in re.split("(?<=would also )|…", quote):
            assert part.strip() in code, quote


@pytest.mark.parametrize(("groups", "status"), [("machine", 1), ("machine packages", 0)])
def test_skips_are_counted(tmp_path, groups, status):
    (tmp_path / "test_one.py").write_text("import pytest\ndef test_it(): pytest.skip('granian is not installed')")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "tests.skips", "-p", "no:cacheprovider", str(tmp_path)]
    environ = {**os.environ, "SKIPS": groups}
    done = subprocess.run(words, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "Skipped: granian" in done.stdout) == (status, status == 1)


def test_the_map_has_every_module():
    text = (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    modules = {file.stem for file in (ROOT / "tests").glob("*.py") if not file.stem.startswith("__")}
    named = set(re.findall(r"`(\w+)(?:\.py)?`", text))
    assert modules <= named and {name for name in named if name.startswith("test_")} <= modules
