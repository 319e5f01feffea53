//! Which of several workers this is: as given, or as the scheduler says in the environment.

use anyhow::{Result, bail};

use crate::pipeline::Usage;

/// One of several workers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Worker {
    /// How many there are.
    pub(super) count: u32,
    /// The number of this one, from 0.
    pub(super) index: u32,
    /// The variable that the number is from.
    pub(super) from: Option<&'static str>,
}

/// Number of a task of a SLURM array.
const SLURM_ID: &str = "SLURM_ARRAY_TASK_ID";
/// Number of a pod of an indexed Kubernetes Job, from 0.
const KUBERNETES_INDEX: &str = "JOB_COMPLETION_INDEX";

impl Worker {
    /// Takes what was given, and the rest from the environment. Numbers of SLURM's tasks need not
    /// begin at 0 or be consecutive: SLURM_ARRAY_TASK_MIN and _STEP say how they run.
    pub(super) fn find(
        count: Option<u32>,
        index: Option<u32>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let number = |name: &str| -> Result<Option<u32>> {
            let Some(text) = variable(name) else {
                return Ok(None);
            };
            match text.trim().parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => bail!(Usage(format!("{name} is {text:?}, not a number"))),
            }
        };
        let worker = match (index, number(SLURM_ID)?, number(KUBERNETES_INDEX)?) {
            (Some(index), ..) => Self {
                count: count.unwrap_or(1),
                index,
                from: None,
            },
            (None, Some(id), _) => {
                let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
                let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
                let Some(count) = count.or(number("SLURM_ARRAY_TASK_COUNT")?) else {
                    bail!(Usage(format!(
                        "{SLURM_ID} is set, but not SLURM_ARRAY_TASK_COUNT\nhint: give --num-workers"
                    )));
                };
                Self {
                    count,
                    index: id.saturating_sub(first) / step,
                    from: Some(SLURM_ID),
                }
            }
            (None, None, Some(index)) => {
                let Some(count) = count else {
                    bail!(Usage(format!(
                        "{KUBERNETES_INDEX} is set: give --num-workers, the completions of the Job\nhint: if \
                         it has nothing to do with this run, give --num-workers 1 --worker-index 0"
                    )));
                };
                Self {
                    count,
                    index,
                    from: Some(KUBERNETES_INDEX),
                }
            }
            (None, None, None) => match count {
                None | Some(1) => Self {
                    count: 1,
                    index: 0,
                    from: None,
                },
                Some(count) => bail!(Usage(format!(
                    "--num-workers {count} needs --worker-index, 0 to {}",
                    count - 1
                ))),
            },
        };
        if worker.index >= worker.count {
            bail!(Usage(format!(
                "--worker-index {} is not below --num-workers {}{}",
                worker.index,
                worker.count,
                worker
                    .from
                    .map_or(String::new(), |from| format!(" (the index is from {from})"))
            )));
        }
        Ok(worker)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(
        count: Option<u32>,
        index: Option<u32>,
        environment: &[(&str, &str)],
    ) -> Result<(u32, u32), String> {
        let variable = |name: &str| {
            let (_, value) = environment.iter().find(|(key, _)| *key == name)?;
            Some((*value).to_owned())
        };
        Worker::find(count, index, variable)
            .map(|worker| (worker.index, worker.count))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_given_comes_before_the_environment() {
        let slurm = [
            ("SLURM_ARRAY_TASK_ID", "7"),
            ("SLURM_ARRAY_TASK_MIN", "3"),
            ("SLURM_ARRAY_TASK_STEP", "2"),
            ("SLURM_ARRAY_TASK_COUNT", "4"),
        ];
        assert_eq!(find(None, None, &slurm), Ok((2, 4)));
        assert_eq!(find(Some(9), None, &slurm), Ok((2, 9)));
        assert_eq!(find(Some(9), Some(8), &slurm), Ok((8, 9)));
        assert_eq!(find(None, None, &[]), Ok((0, 1)));
        let kubernetes = [("JOB_COMPLETION_INDEX", "5")];
        assert_eq!(find(Some(6), None, &kubernetes), Ok((5, 6)));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (count, index, environment, message) in [
            (
                Some(4),
                None,
                &[][..],
                "--num-workers 4 needs --worker-index, 0 to 3",
            ),
            (
                Some(4),
                Some(4),
                &[],
                "--worker-index 4 is not below --num-workers 4",
            ),
            (
                None,
                None,
                &[("SLURM_ARRAY_TASK_ID", "x")],
                "SLURM_ARRAY_TASK_ID is \"x\", not a number",
            ),
            (
                None,
                None,
                &[("SLURM_ARRAY_TASK_ID", "1")],
                "SLURM_ARRAY_TASK_ID is set, but not SLURM_ARRAY_TASK_COUNT\nhint: give --num-workers",
            ),
            (
                Some(2),
                None,
                &[("JOB_COMPLETION_INDEX", "2")],
                "--worker-index 2 is not below --num-workers 2 (the index is from JOB_COMPLETION_INDEX)",
            ),
        ] {
            assert_eq!(find(count, index, environment), Err(message.to_owned()));
        }
        let error = find(None, None, &[("JOB_COMPLETION_INDEX", "0")]).unwrap_err();
        assert!(error.starts_with("JOB_COMPLETION_INDEX is set: give --num-workers"));
    }
}
