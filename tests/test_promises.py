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


SAFETY = {
    "is run by a manager": "test_guards.test_a_service_or_a_container_is_left_alone test_managers.test_supervisord "
    "test_managers.test_pm2_in_cluster_mode test_containers.test_a_published_port_is_named_and_left_alone "
    "test_containers.test_a_unit_is_named_and_left_alone test_other_systems.test_macos_who_stays",
    "cannot be seen": "test_guards.test_who_cannot_be_told_stays test_guards.test_a_normal_user_stops_nobody_elses",
    "is the system itself": "test_safety_conditions.test_no_signal_for_a_pid_below_2 "
    "test_containers.test_the_main_process_of_the_container",
    "is a tunnel": "test_guards.test_what_holds_ports_for_others_is_left_alone_with_its_remedy "
    "test_other_systems.test_who_holds_ports_for_others",
    "could not be looked at": "test_safety_conditions.test_out_of_descriptors_the_port_counts_as_held "
    "test_guards.test_kernel_threads_live",
    "is this very process": "test_guards.test_we_and_our_ancestors_live "
    "test_guards.test_an_ancestor_that_is_hidden_may_be_the_holder",
    "runs on a terminal of its own": "test_guards.test_a_server_that_opens_terminals",
    "listens on IPv4 alone": "test_guards.test_a_listener_on_ipv4_alone_stays_where_ipv6_is_asked_for "
    "test_guards.test_the_same_link_local_address_on_another_interface",
    "is another user's": "test_guards.test_another_users_process_is_left_alone_by_root "
    "test_guards.test_workers_that_gave_up_their_rights "
    "test_safety_conditions.test_a_holder_whose_user_is_not_told_is_not_ours",
    "is not what the [policy]": "test_guards.test_a_policy_that_stops_nobody "
    "test_projects.test_whose_a_server_is",
    "is a server of another project": "test_projects.test_another_projects_server_is_refused_without_a_terminal "
    "test_projects.test_whose_a_server_is test_projects.test_a_person_who_names_the_port_means_it",
    "would take something else": "test_managers.test_an_editor_s_server_with_a_terminal_stays "
    "test_projects.test_another_port_would_close_too",
}
DECISIONS = {
    "| is free": "test_free_or_not.test_free_port_is_available",
    "| may be stopped": "test_guards.test_the_names_of_development_and_all_others test_stopping.test_the_words_of_a_take_over",
    "[another project]": "test_projects.test_it_is_asked_about_on_a_terminal",
    "[must stay]": "test_guards.test_one_who_must_stay_saves_the_others",
    "| anything else": "test_guards.test_the_names_of_development_and_all_others",
    "| cannot be had": "test_free_or_not.test_the_troubles_have_messages_of_their_own",
}
TROUBLES = {
    "runs it; stop it with": "test_guards.test_a_service_or_a_container_is_left_alone",
    "that you may not see": "test_guards.test_a_normal_user_stops_nobody_elses",
    "this container's main process": "test_containers.test_the_main_process_of_the_container",
    "it is a tunnel": "test_other_systems.test_who_holds_ports_for_others",
    "AirPlay": "test_other_systems.test_macos_who_stays",
    "it is an ancestor": "test_guards.test_we_and_our_ancestors_live",
    "it runs on a terminal": "test_guards.test_a_server_that_opens_terminals",
    "it listens on IPv4": "test_guards.test_a_listener_on_ipv4_alone_stays_where_ipv6_is_asked_for",
    "whether its": "test_guards.test_the_same_link_local_address_on_another_interface",
    "it belongs to user": "test_guards.test_root_leaves_other_users_alone",
    "take the next free port": "test_projects.test_another_projects_server_is_refused_without_a_terminal",
    "end a terminal": "test_managers.test_an_editor_s_server_with_a_terminal_stays",
    "close port": "test_projects.test_another_port_would_close_too",
    "was taken again": "test_stopping.test_a_loop_that_starts_its_server_again_is_named",
    "local end of a connection": "test_guards.test_a_client_whose_own_end_is_our_port_is_named_and_lives",
    "nobody who may be seen": "test_other_systems.test_nobody_is_found_who_holds_the_port",
    "nothing on this system": "test_tools.test_a_planted_tool_costs_no_bystander_its_life",
    "even when forced": "test_stopping.test_the_exit_of_one_who_cannot_be_forced_is_reported",
    "no permission": "test_free_or_not.test_no_permission_for_real",
    "not an address": "test_free_or_not.test_the_troubles_have_messages_of_their_own",
    "10013": "test_other_systems.test_windows_a_reserved_range_has_no_holder",
    "outside development": "test_python_calls.test_errors_carry_what_a_caller_needs",
    "PORT_MANAGER_POLICY is": "test_guards.test_a_policy_that_stops_nobody",
    "No app was found": "test_run_backend.test_nobody_is_stopped_where_there_is_nothing_to_start",
    "not installed": "test_run_backend.test_nobody_is_stopped_where_there_is_nothing_to_start",
}
LISTS = {
    "safety": (SAFETY, re.findall("(?m)^- .+", section("Who is never stopped").partition("\n\nNobody")[0])),
    "decisions": (DECISIONS, rows(section("What happens"))),
    "troubleshooting": (TROUBLES, rows(section("Troubleshooting"))),
}


@pytest.mark.parametrize("name", LISTS)
def test_each_line_is_named_by_a_test(name):
    promises, lines = LISTS[name]
    assert len(lines) == len(promises)
    for line in lines:
        assert len([words for words in promises if words in line]) == 1, line


@pytest.mark.parametrize("name", LISTS)
def test_the_tests_exist(name):
    named = {test for tests in LISTS[name][0].values() for test in tests.split()}
    missing = [test for test in named if f"\ndef {test.partition('.')[2]}(" not in source(test.partition(".")[0])]
    assert missing == []


def source(module: str) -> str:
    file = ROOT / "tests" / f"{module}.py"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def test_the_sentences_are_tested():
    """The longest words of each that never change stand in the module of its test."""
    for words, test in TROUBLES.items():
        (row,) = [line for line in LISTS["troubleshooting"][1] if words in line]
        for quote in re.findall("`([^`]+)`", row.split("|")[1]):
            sentence = max(re.split(" also |…", quote), key=len).strip(" ;:")
            assert sentence.lower() in source(test.partition(".")[0]).lower(), sentence


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
