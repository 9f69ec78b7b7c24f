"""The tests that `make fast` leaves out."""

SLOW = {
    *("benchmarks/test_benchmarks.py", "benchmarks/test_fuzz.py", "benchmarks/test_gpu.py", "benchmarks/test_kills.py"),
    *("cli/test_cli_text.py", "cli/test_lost_work.py", "demo/test_demo.py"),
    *("docs/test_docs_code.py", "docs/test_examples.py", "docs/test_notebooks.py"),
    *("evaluation/test_edits.py", "evaluation/test_pie_bench.py", "evaluation/test_rows.py"),
    *("evaluation/test_table1.py", "evaluation/test_table2.py", "inversion/test_guided_inversions.py"),
    *("laws/test_law_bits.py", "models/test_emoji.py", "models/test_live.py", "models/test_sdxl_family.py"),
    "models/test_flow_model.py",
    *("parity/test_sdxl.py", "parity/test_stable_diffusion.py", "training/test_run.py"),
    *("test_imports.py", "test_structure.py"),
    *("cli/test_cli_photographs.py", "models/test_masked_text_families.py"),
    "cli/test_cli.py::test_a_true_process_speaks_json_on_stdout_alone",
    "cli/test_cli_errors.py::test_a_reader_that_leaves_is_no_drama",
    "cli/test_cli_errors.py::test_a_true_process_exits_with_the_code_and_no_traceback",
    "core/test_hold.py::test_text_models_hold_after_guidance",
    "models/test_flux2.py::test_a_code_keeps_its_reference",
    "evaluation/test_fid.py::test_what_cannot_be_measured_is_one_sentence",
    "evaluation/test_leaderboard.py::test_the_command_measures_every_method_once",
    "laws/test_law_moments.py::test_monte_carlo_of_the_mixture",
    "pipelines/test_edit.py::test_a_saved_code_edits_as_the_one_that_was_saved",
    "pipelines/test_verbs.py::test_inverting_a_sample_finds_the_noise_it_came_from",
    "training/test_processes.py",
    "training/test_labels.py::test_a_network_learns_the_mean_of_each_class_and_of_all",
    "training/test_tasks.py::test_another_autoencoder_in_the_same_folder_is_refused_on_resume",
}
"""Modules of many seconds, and tests of more than one."""
