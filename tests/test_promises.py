"""Each promise of the README has a test that fails without it: the safety list, the decision table, troubleshooting.

A line is named by words that stand in it alone. Whoever adds one to the lists adds its test here.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import PORT_MANAGER, ROOT, RUN_BACKEND, python

README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ") and "|---" not in line][1:]


# A promise of the README: the tests that guard it, by module, each name without its "test_".
SAFETY = {
    "is run by a manager": "guards.a_service_or_a_container_is_left_alone guards.what_a_manager_runs_stays "
    "managers.supervisord managers.pm2 containers.a_port_of_a_container_is_named_and_left_alone "
    "containers.a_unit_is_named_and_left_alone other_systems.macos_who_stays",
    "cannot be seen": "guards.a_normal_user_stops_nobody_elses "
    "safety_conditions.a_parent_that_is_hidden_is_not_one_that_ended",
    "is the system itself": "guards.the_first_process_lives containers.the_main_process_of_the_container "
    "safety_conditions.no_signal_for_a_pid_below_2",
    "is a tunnel": "guards.who_must_stay guards.who_holds_the_port_of_a_container_stays "
    "other_systems.who_holds_ports_for_others",
    "could not be looked at": "safety_conditions.out_of_descriptors_the_port_counts_as_held guards.kernel_threads_live",
    "is this very process": "guards.this_very_process_lives guards.an_ancestor_lives "
    "guards.a_parent_that_ends_leaves_its_child_to_another",
    "runs on a terminal of its own": "guards.who_must_stay",
    "listens on IPv4 alone": "guards.who_must_stay guards.only_what_conflicts_goes "
    "free_or_not.where_a_conflict_cannot_be_told",
    "is another user's": "guards.who_must_stay safety_conditions.whose_it_is_when_several_users_hold_it "
    "safety_conditions.a_holder_whose_user_is_not_told_is_not_ours",
    "is not what the [policy]": "guards.a_policy_that_stops_nobody projects.whose_a_server_is",
    "is a server of another project": "projects.another_projects_server_is_refused_without_a_terminal "
    "projects.whose_a_server_is projects.another_port_would_close_too",
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
LISTS = [
    (SAFETY, re.findall("(?m)^- .+", section("Who is never stopped").partition("\n\nNobody")[0])),
    (DECISIONS, rows(section("What happens"))),
]
MODULES = {file.stem: file.read_text(encoding="utf-8") for file in (ROOT / "tests").glob("*.py")}


@pytest.mark.parametrize(("promises", "lines"), LISTS, ids=["safety", "decisions"])
def test_each_line_is_named_by_tests_that_exist(promises, lines):
    assert len(lines) == len(promises)
    for line in lines:
        assert len([words for words in promises if words in line]) == 1, line
    for test in " ".join(promises.values()).split():
        module, _, name = test.partition(".")
        assert f"\ndef test_{name}(" in MODULES[f"test_{module}"], test


@pytest.mark.parametrize(("table", "least"), [("Troubleshooting", 26), ("中文说明", 10)])
def test_troubleshooting_quotes_messages_that_exist_and_are_tested(table, least):
    """All of the words that never change stand in the code, and the longest of each in a test."""
    code = "".join(Path(file).read_text(encoding="utf-8") for file in (PORT_MANAGER, RUN_BACKEND))
    code = re.sub(r'"\s*\+?\s*\(?f?"', "", code)  # a text that continues on the next line
    code = re.sub(r"\{[^{}\n]*\}", "…", code)
    tests = "\n".join(text for name, text in MODULES.items() if name[:5] == "test_" and name != "test_promises").lower()
    cells = [line.split("|")[1] for line in rows(section(table).partition("以及该怎么做")[2] or section(table))]
    quotes = [quote for cell in cells for quote in re.findall("`([^`]+)`", cell)]
    assert len(quotes) >= least
    for quote in quotes:
        assert all(part.strip() in code for part in re.split("(?<=would also )|…", quote)), quote
        assert max(re.split(" also |…", quote), key=len).strip(" ;:").lower() in tests, quote


@pytest.mark.parametrize(("groups", "status"), [("machine", 1), ("machine packages", 0)])
def test_skips_are_counted(tmp_path, groups, status):
    (tmp_path / "test_one.py").write_text("import pytest\ndef test_it(): pytest.skip('granian is not installed')")
    done = python("-m", "pytest", "-p", "tests.skips", "-p", "no:cacheprovider", str(tmp_path), SKIPS=groups)
    assert (done.returncode, "Skipped: granian" in done.stdout) == (status, status == 1)


def test_the_map_has_every_module():
    modules = {name for name in MODULES if not name.startswith("__")}
    named = set(re.findall(r"`(\w+)(?:\.py)?`", (ROOT / "tests" / "README.md").read_text(encoding="utf-8")))
    assert modules <= named and {name for name in named if name.startswith("test_")} <= modules
