//! Signals that mean nothing, and mistakes that used to mislead.

use remit::shard::layout::Description;

use crate::harness::{ANNEAL, Ended, INSPECT, SCORE, Workspace, model};

/// Lines of the log that are warnings.
fn warnings(ended: &Ended) -> Vec<&str> {
    let lines = ended.stderr.lines();
    lines
        .filter_map(|line| line.strip_prefix(" WARN "))
        .collect()
}

fn corpus() -> Workspace {
    let workspace = Workspace::new();
    workspace.write_corpus("corpus/a.jsonl", 12);
    workspace
}

#[track_caller]
fn warns_once(ended: &Ended, beginning: &str, holds: &str) {
    let found = warnings(ended);
    let of_it = found.iter().filter(|line| line.starts_with(beginning));
    ended.check(of_it.count() == 1, &format!("one warning: {beginning}"));
    let all = found.join("\n");
    ended.check(all.contains(holds), &format!("it says {holds}"));
}

#[test]
fn a_pair_that_can_be_meant_gives_no_warning() {
    let workspace = corpus();
    let scored = workspace
        .command(SCORE)
        .models("demo-rl", "demo-base")
        .args("corpus -o set --strict")
        .ok();
    assert_eq!(warnings(&scored), [""; 0]);
    let annealed = workspace
        .command(ANNEAL)
        .args("--weights set -o out --steps 2 --strict")
        .ok();
    assert_eq!(warnings(&annealed), [""; 0]);
}

#[test]
fn one_model_in_both_places_is_warned_of_and_refused_when_strict() {
    let workspace = corpus();
    let score = |more: &str| {
        workspace
            .command(SCORE)
            .models("demo-rl", "demo-rl")
            .args("corpus -o set")
            .args(more)
    };
    for more in ["--dry-run", ""] {
        let ended = score(more).ok();
        assert_eq!(warnings(&ended).len(), 1, "{}", ended.report());
        warns_once(
            &ended,
            "the RL model ",
            "are one model (both have the fingerprint ",
        );
    }
    for more in ["--dry-run --strict", "--strict"] {
        let ended = score(more).run();
        ended.check(ended.status.code() == Some(65), "strict");
        ended.check(
            ended
                .stderr
                .contains("\nhint: without --strict this is a warning"),
            "the way out",
        );
    }
}

#[test]
fn two_models_that_may_be_swapped_are_told_by_names_and_by_chat_templates() {
    let workspace = corpus();
    let ended = workspace
        .command(SCORE)
        .models("demo-base", "demo-rl")
        .args("corpus -o set")
        .ok();
    warns_once(&ended, "the RL model ", "may be swapped, by their names");
    workspace.copy_model("demo-rl", "a");
    workspace.copy_model("demo-base", "b");
    workspace.write("b/chat_template.jinja", "{{ messages }}");
    let ended = workspace
        .command(SCORE)
        .args("corpus -o other --rl-model a --base-model b")
        .ok();
    warns_once(
        &ended,
        "the RL model ",
        "since only the base has a chat template",
    );
}

#[test]
fn a_text_that_is_noise_to_the_rl_model_is_warned_of_with_its_perplexity() {
    let workspace = corpus();
    let ended = workspace
        .command(SCORE)
        .args("corpus -o set --rl-model")
        .arg(model("tiny-llama"))
        .ok();
    warns_once(
        &ended,
        "the text is noise to the RL model: its perplexity is ",
        "guessing among its 1056 tokens gives 1056",
    );
    let ended = workspace
        .command(SCORE)
        .args("corpus -o strict --strict --rl-model")
        .arg(model("tiny-llama"))
        .run();
    ended.check(ended.status.code() == Some(65), "strict");
    ended.check(
        ended
            .stderr
            .contains("error: strict is complete, but: the text is noise"),
        "the set is there all the same",
    );
    assert!(workspace.has_manifest("strict"));
}

#[test]
fn weights_at_their_bounds_are_warned_of_when_scored_and_when_trained_on() {
    let workspace = corpus();
    let score = |output: &str, more: &str| {
        workspace
            .command(SCORE)
            .models("demo-rl", "demo-base")
            .args("corpus -o")
            .arg(output)
            .args(more)
            .ok()
    };
    let ended = score("set", "--epsilon 0.001");
    warns_once(
        &ended,
        "",
        " % of the weights are at their bounds, 0.999 and ",
    );
    assert_eq!(warnings(&score("other", "")), [""; 0]);
    let ended = workspace
        .command(ANNEAL)
        .args("--weights other -o out --steps 3 --epsilon 0.001")
        .ok();
    warns_once(&ended, "", " % of the weights are at their bounds, ");
    let ended = workspace
        .command(ANNEAL)
        .args("--weights other -o strict --steps 3 --epsilon 0.001 --strict")
        .run();
    ended.check(ended.status.code() == Some(65), "strict");
}

#[test]
fn the_rl_model_as_the_learner_is_warned_of() {
    let workspace = corpus();
    workspace
        .command(SCORE)
        .models("demo-rl", "demo-base")
        .args("corpus -o set")
        .ok();
    let anneal = |more: &str| {
        workspace
            .command(ANNEAL)
            .args("--weights set -o out --steps 1 --model")
            .arg(model("demo-rl"))
            .args(more)
    };
    let ended = anneal("--strict").run();
    ended.check(ended.status.code() == Some(65), "strict");
    warns_once(
        &anneal("").ok(),
        "the learner ",
        "is the RL model that the set in set was scored with",
    );
}

#[test]
fn options_that_the_weighting_does_not_use_are_warned_of_and_others_are_not() {
    let workspace = corpus();
    workspace
        .command(SCORE)
        .models("demo-rl", "demo-base")
        .args("corpus -o set")
        .ok();
    let given = "--epsilon 0.3 --temperature 2 --center none --top-k-fraction 0.5";
    for (weighting, unused) in [
        ("dynamic", "--top-k-fraction"),
        ("excess-top-k", "--epsilon --temperature --center"),
        (
            "uniform",
            "--epsilon --temperature --center --top-k-fraction",
        ),
    ] {
        let ended = workspace
            .command(ANNEAL)
            .args("--weights set --steps 1")
            .args(&format!("-o {weighting} --weighting {weighting} {given}"))
            .ok();
        let expected: Vec<String> = unused
            .split(' ')
            .map(|option| {
                format!("{option} changes nothing: --weighting {weighting} does not use it")
            })
            .collect();
        assert_eq!(warnings(&ended), expected);
    }
}

#[test]
fn an_ignored_field_is_recorded_in_the_plan_and_goes_for_training_too() {
    let workspace = corpus();
    workspace.copy_model("demo-rl", "rl");
    workspace.copy_model("demo-base", "base");
    let command = "corpus -o set --rl-model rl --base-model base";
    workspace.command(SCORE).args(command).ok();
    let plan = workspace.description("set", Description::Plan);
    assert!(plan.get("ignored_config_fields").is_none());
    workspace.edit_json("base/config.json", |c| c["my_note"] = "mine".into());
    let command = "corpus -o other --rl-model rl --base-model base --ignore-config-field my_note";
    workspace.command(SCORE).args(command).ok();
    let plan = workspace.description("other", Description::Plan);
    assert_eq!(
        plan["ignored_config_fields"],
        serde_json::json!(["my_note"])
    );
    let same = |set: &str| {
        workspace
            .snapshot(set)
            .into_iter()
            .filter(|(name, _)| name.starts_with("part-"))
            .count()
    };
    assert_eq!(same("set"), same("other"));
    workspace
        .command(ANNEAL)
        .args("--weights other -o out --steps 1")
        .ok();
    let ended = workspace.command(INSPECT).args("model out").run();
    ended.check(ended.status.code() == Some(65), "elsewhere it is refused");
    let ended = workspace
        .command(INSPECT)
        .args("model out --ignore-config-field my_note")
        .ok();
    ended.check(
        ended.stdout.contains("ignored       my_note\n"),
        "it is told",
    );
    workspace.write(
        "run.toml",
        "weights = \"set\"\nmodel = \"out\"\nsteps = 1\nignore-config-field = [\"my_note\"]\n",
    );
    workspace
        .command(ANNEAL)
        .args("--config run.toml -o again")
        .ok();
}

#[test]
fn an_unknown_argument_tells_what_was_meant() {
    let workspace = Workspace::new();
    for (program, args, tip) in [
        (
            SCORE,
            "x -o y --seed 3",
            "--seed is an option of remit-anneal, not of remit-score: scoring draws no random numbers",
        ),
        (ANNEAL, "--weights w --max-steps 5", "here it is --steps"),
        (ANNEAL, "--weights w --learning_rate 1", "here it is --lr"),
        (
            ANNEAL,
            "--weights w --rl-model x",
            "--rl-model is an option of remit-score",
        ),
        (SCORE, "x -o y --model m", "here it is --rl-model"),
        (
            SCORE,
            "x -o y -seq-len 4",
            "long options have two dashes: --seq-len",
        ),
        (SCORE, "x -o y --overwrite", "nothing is ever written over"),
        (
            SCORE,
            "x -o y --seq-lem 4",
            "a similar argument exists: '--seq-len'",
        ),
        (
            INSPECT,
            "shwo w",
            "there is no subcommand shwo; a similar one is show",
        ),
        (
            INSPECT,
            "verfiy w",
            "there is no subcommand verfiy; a similar one is verify",
        ),
    ] {
        let ended = workspace.command(program).args(args).run();
        ended.check(ended.status.code() == Some(2), "usage");
        ended.check(ended.stderr.contains(&format!("tip: {tip}")), tip);
        ended.check(!ended.stderr.contains("'-- -"), "no tip that leads nowhere");
    }
    let ended = workspace
        .command(SCORE)
        .args("x -o y --nothing-like-it")
        .run();
    ended.check(!ended.stderr.contains("tip:"), "no tip that leads nowhere");
    let ended = workspace.command(INSPECT).args("shwo").run();
    ended.check(
        ended.stderr.contains(
            "no such folder: shwo\nhint: if a subcommand was meant, a similar one is show\n",
        ),
        "without a folder too",
    );
    workspace.write("run.toml", "weights = \"w\"\nmax_steps = 3\n");
    let ended = workspace.command(ANNEAL).args("--config run.toml").run();
    ended.check(
        ended.stderr.contains("\nhint: here it is steps\n"),
        "in a file too",
    );
}

#[test]
fn a_batch_that_is_more_than_the_set_is_told_with_the_tokens_there_are() {
    let workspace = corpus();
    workspace.command(SCORE).args("corpus -o set").ok();
    let tokens = workspace.description("set", Description::Manifest)["totals"]["tokens"].clone();
    let ended = workspace
        .command(ANNEAL)
        .args("--weights set -o out/ --steps 2 --batch-tokens 2097152")
        .ok();
    warns_once(
        &ended,
        "--batch-tokens 2097152 is more than the ",
        &format!("the {tokens} tokens there are"),
    );
    ended.check(
        ended
            .stderr
            .contains(&format!("2 steps of {tokens} tokens, ")),
        "steps as they are",
    );
    ended.check(
        ended
            .stdout
            .contains("; out/metrics.jsonl has every step\n"),
        "no double slash",
    );
}

#[test]
fn a_model_without_weights_is_described_by_its_config() {
    let workspace = Workspace::new();
    workspace.copy_model("tiny-llama", "whole");
    workspace.copy_model("tiny-llama", "config");
    workspace.remove("config/model.safetensors");
    workspace.remove("config/tokenizer.json");
    let report = |args: &str| -> serde_json::Value {
        let ended = workspace.command(INSPECT).args(args).ok();
        serde_json::from_str(&ended.stdout).unwrap()
    };
    let (whole, config) = (report("model whole --json"), report("model config --json"));
    for field in [
        "parameters",
        "scoring_bytes",
        "annealing_bytes",
        "forward_flops_per_token",
    ] {
        assert!(
            whole[field].is_number() && whole[field] == config[field],
            "{field}"
        );
    }
    assert_eq!(config["weights_problem"], "there is no model.safetensors");
    let ended = workspace.command(INSPECT).args("model config").ok();
    ended.check(
        ended
            .stdout
            .contains("no weights yet: there is no model.safetensors\n"),
        "it is told",
    );
    let ended = workspace
        .command(INSPECT)
        .args("model config --check-values")
        .run();
    ended.check(ended.status.code() == Some(66), "values can't be checked");
}

#[test]
fn curves_by_source_that_tensorboard_does_not_get_are_told() {
    let workspace = Workspace::new();
    for number in 0..51 {
        workspace.write(&format!("corpus/{number}.txt"), "What is 1+2? It is 3.");
    }
    workspace.command(SCORE).args("corpus -o set").ok();
    let ended = workspace
        .command(ANNEAL)
        .args("--weights set -o out --steps 2 --eval-weights set")
        .ok();
    warns_once(
        &ended,
        "TensorBoard gets no curves by source: there are 51 sources, more than 50",
        "eval.jsonl",
    );
}

#[test]
fn a_process_of_srun_scores_its_part_and_a_batch_script_says_what_is_unclear() {
    let workspace = corpus();
    let score = |rank: &str, more: &str| {
        workspace
            .command(SCORE)
            .args("corpus -o set --part-bytes 300")
            .args(more)
            .env("SLURM_PROCID", rank)
            .env("SLURM_NTASKS", "2")
    };
    let ended = score("1", "").ok();
    ended.check(
        ended
            .stderr
            .contains("SLURM_PROCID is set: this is worker 1 of 2"),
        "it says so",
    );
    ended.check(!workspace.has_manifest("set"), "it is a part");
    let ended = score("0", "").run();
    ended.check(ended.status.code() == Some(2), "task 0 may be alone");
    ended.check(
        ended
            .stderr
            .contains("hint: give --num-workers 1 if this process is to score everything"),
        "the way out",
    );
    score("0", "").env("SLURM_STEP_NUM_TASKS", "2").ok();
    assert!(workspace.has_manifest("set"));
}

#[test]
fn files_of_other_endings_are_read_as_text_when_they_are_named() {
    let workspace = Workspace::new();
    workspace.write("corpus/a.py", "print(1 + 2)  # It is 3.");
    workspace.write("corpus/b.HTML.gz", gzip(b"<p>2 + 2 is 4.</p>"));
    workspace.write("corpus/c.txt", "3 + 3 is 6.");
    let ended = workspace.command(SCORE).args("corpus/a.py -o out").run();
    ended.check(
        ended
            .stderr
            .contains("\nhint: if it is text, --text-ext py reads it, as one document\n"),
        "the remedy",
    );
    let sources = |output: &str, more: &str| -> Vec<String> {
        workspace
            .command(SCORE)
            .args("corpus -o")
            .arg(output)
            .args(more)
            .ok();
        let manifest = workspace.description(output, Description::Manifest);
        manifest["sources"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    };
    assert_eq!(sources("one", ""), ["c.txt"]);
    assert_eq!(
        sources("all", "--text-ext .py,HTML"),
        ["a.py", "b.HTML.gz", "c.txt"]
    );
    let plan = workspace.description("all", Description::Plan);
    assert_eq!(plan["text_ext"], serde_json::json!(["html", "py"]));
    assert!(
        workspace
            .description("one", Description::Plan)
            .get("text_ext")
            .is_none()
    );
    let ended = workspace
        .command(SCORE)
        .args("corpus -o out --text-ext gz")
        .run();
    ended.check(
        ended.status.code() == Some(2),
        "an ending of what is packed",
    );
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}
