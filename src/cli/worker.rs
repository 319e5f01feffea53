//! Finds out which of several workers this is: as given, or as the scheduler says in the environment.

use anyhow::{Result, bail};

use crate::pipeline::Usage;

/// One of several workers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Worker {
    /// Number of workers.
    pub(super) count: u32,
    /// The number of this one, from 0.
    pub(super) index: u32,
    /// The variable that the number, or the count, is from.
    pub(super) from: Option<&'static str>,
}

/// Number of a task of a SLURM array.
const SLURM_ID: &str = "SLURM_ARRAY_TASK_ID";
/// Number of tasks of the array.
const SLURM_COUNT: &str = "SLURM_ARRAY_TASK_COUNT";
/// Number of a pod of an indexed Kubernetes Job, from 0.
const KUBERNETES_INDEX: &str = "JOB_COMPLETION_INDEX";

/// Numbers in the environment; an empty variable counts as one that is not set.
struct Environment<F>(F);

impl<F: Fn(&str) -> Option<String>> Environment<F> {
    fn number(&self, name: &str) -> Result<Option<u32>> {
        let Some(text) = (self.0)(name).filter(|text| !text.trim().is_empty()) else {
            return Ok(None);
        };
        match text.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => bail!(Usage(format!("{name} is {text:?}, not a number"))),
        }
    }

    /// Returns the worker that the task `id` of a SLURM array is, and the number of workers.
    ///
    /// An array with as many tasks as there are workers is all of them. Its numbers may start anywhere and have
    /// steps: `--array=1-8`, `--array=0-14:2`. Any other array is taken for a few tasks that are run again,
    /// `--array=2,5` of 8. Their numbers are those of the workers.
    fn slurm_task(&self, id: u32, count: Option<u32>) -> Result<(u32, u32)> {
        let tasks = self.number(SLURM_COUNT)?;
        let Some(count) = count.or(tasks) else {
            bail!(Usage(format!(
                "{SLURM_ID} is set, but not {SLURM_COUNT}\nhint: give --num-workers"
            )));
        };
        if tasks != Some(count) {
            if id >= count {
                bail!(Usage(format!(
                    "{SLURM_ID} is {id}, which is no worker of --num-workers {count}: where the array has \
                     another number of tasks, its numbers are those of the workers, 0 to {}\nhint: number \
                     the array from 0, or give --worker-index",
                    count.saturating_sub(1)
                )));
            }
            return Ok((id, count));
        }
        let first = self.number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
        let step = self.number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
        let last = u64::from(first) + u64::from(step) * u64::from(count.saturating_sub(1));
        let max = self.number("SLURM_ARRAY_TASK_MAX")?.map(u64::from);
        let is_even = max.is_none_or(|max| max == last);
        match id.checked_sub(first) {
            Some(above) if is_even && above % step == 0 => Ok((above / step, count)),
            _ => bail!(Usage(format!(
                "{SLURM_ID} is {id}, in an array of {count} tasks from {first} to {} that are not {step} \
                 apart, so it does not say which worker this is\nhint: use --array=0-{}, or give \
                 --num-workers and --worker-index",
                max.unwrap_or(last),
                count.saturating_sub(1)
            ))),
        }
    }
}

impl Worker {
    /// Takes what was given, and the rest from the environment.
    pub(super) fn find(
        count: Option<u32>,
        index: Option<u32>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let environment = Environment(variable);
        if let Some(index) = index {
            let (count, from) = match (count, environment.number(SLURM_COUNT)) {
                (Some(count), _) => (count, None),
                (None, tasks) => match tasks? {
                    Some(tasks) => (tasks, Some(SLURM_COUNT)),
                    None => (1, None),
                },
            };
            let from_text = from.map_or(String::new(), |from| format!(", which is from {from}"));
            if index >= count {
                bail!(Usage(format!(
                    "--worker-index {index} is not below --num-workers {count}{from_text}"
                )));
            }
            return Ok(Self { count, index, from });
        }
        // A single worker has all parts, whatever its number.
        if count == Some(1) {
            return Ok(Self {
                count: 1,
                index: 0,
                from: None,
            });
        }
        if let Some(id) = environment.number(SLURM_ID)? {
            let (index, count) = environment.slurm_task(id, count)?;
            return Ok(Self {
                count,
                index,
                from: Some(SLURM_ID),
            });
        }
        if let Some(index) = environment.number(KUBERNETES_INDEX)? {
            let Some(count) = count else {
                bail!(Usage(format!(
                    "{KUBERNETES_INDEX} is set: give --num-workers, the completions of the Job\nhint: if it \
                     has nothing to do with this run, give --num-workers 1"
                )));
            };
            if index >= count {
                bail!(Usage(format!(
                    "--worker-index {index}, which is from {KUBERNETES_INDEX}, is not below --num-workers \
                     {count}"
                )));
            }
            return Ok(Self {
                count,
                index,
                from: Some(KUBERNETES_INDEX),
            });
        }
        if let Some(count) = count {
            bail!(Usage(format!(
                "--num-workers {count} needs --worker-index, 0 to {}",
                count.saturating_sub(1)
            )));
        }
        Ok(Self {
            count: 1,
            index: 0,
            from: None,
        })
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

    /// Returns the variables that SLURM sets for a task of an array.
    fn slurm(id: u32, ids: &[u32]) -> Vec<(&'static str, &'static str)> {
        let text = |number: u32| -> &'static str { Box::leak(number.to_string().into_boxed_str()) };
        let step = ids.get(1).map_or(1, |second| second - ids[0]);
        vec![
            (SLURM_ID, text(id)),
            (SLURM_COUNT, text(ids.len() as u32)),
            ("SLURM_ARRAY_TASK_MIN", text(ids[0])),
            ("SLURM_ARRAY_TASK_MAX", text(ids[ids.len() - 1])),
            ("SLURM_ARRAY_TASK_STEP", text(step)),
        ]
    }

    #[test]
    fn what_is_given_comes_before_the_environment() {
        let array = slurm(7, &[3, 5, 7, 9]);
        assert_eq!(find(None, None, &array), Ok((2, 4)));
        assert_eq!(find(Some(9), Some(8), &array), Ok((8, 9)));
        assert_eq!(find(None, Some(3), &array), Ok((3, 4)));
        assert_eq!(find(Some(1), None, &array), Ok((0, 1)));
        assert_eq!(find(None, None, &[]), Ok((0, 1)));
        let kubernetes = [(KUBERNETES_INDEX, "5")];
        assert_eq!(find(Some(6), None, &kubernetes), Ok((5, 6)));
    }

    #[test]
    fn tasks_of_a_whole_array_are_counted_and_those_of_a_rerun_are_the_workers_themselves() {
        for ids in [&[0, 1, 2, 3][..], &[1, 2, 3, 4], &[2, 4, 6, 8]] {
            for (rank, id) in (0..).zip(ids) {
                assert_eq!(find(None, None, &slurm(*id, ids)), Ok((rank, 4)));
                assert_eq!(find(Some(4), None, &slurm(*id, ids)), Ok((rank, 4)));
            }
        }
        for ids in [&[2, 5][..], &[5], &[1, 3, 7]] {
            for id in ids {
                assert_eq!(find(Some(8), None, &slurm(*id, ids)), Ok((*id, 8)));
            }
        }
        // Without the number of all workers, those few share all that is missing.
        assert_eq!(find(None, None, &slurm(5, &[2, 5])), Ok((1, 2)));
    }

    #[test]
    fn an_array_with_uneven_gaps_is_refused_where_its_numbers_would_have_to_be_counted() {
        for count in [None, Some(3)] {
            for id in [1, 3, 7] {
                let error = find(count, None, &slurm(id, &[1, 3, 7])).unwrap_err();
                assert!(
                    error.starts_with(&format!(
                        "SLURM_ARRAY_TASK_ID is {id}, in an array of 3 tasks from 1 to 7 that are not 2 \
                         apart, "
                    )),
                    "{error}"
                );
            }
        }
        let error = find(Some(4), None, &slurm(5, &[2, 5])).unwrap_err();
        assert!(
            error.starts_with("SLURM_ARRAY_TASK_ID is 5, which is no worker of --num-workers 4: "),
            "{error}"
        );
    }

    #[test]
    fn an_empty_variable_is_one_that_is_not_set() {
        let empty = [(SLURM_ID, ""), (SLURM_COUNT, " "), (KUBERNETES_INDEX, "")];
        assert_eq!(find(None, None, &empty), Ok((0, 1)));
        assert_eq!(find(None, Some(0), &empty), Ok((0, 1)));
        assert_eq!(find(Some(3), Some(2), &empty), Ok((2, 3)));
        let kubernetes = [(SLURM_ID, ""), (KUBERNETES_INDEX, "1")];
        assert_eq!(find(Some(3), None, &kubernetes), Ok((1, 3)));
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
                Some(5),
                &[(SLURM_COUNT, "2")],
                "--worker-index 5 is not below --num-workers 2, which is from SLURM_ARRAY_TASK_COUNT",
            ),
            (
                None,
                None,
                &[(SLURM_ID, "x")],
                "SLURM_ARRAY_TASK_ID is \"x\", not a number",
            ),
            (
                None,
                None,
                &[(SLURM_ID, "1")],
                "SLURM_ARRAY_TASK_ID is set, but not SLURM_ARRAY_TASK_COUNT\nhint: give --num-workers",
            ),
            (
                Some(2),
                None,
                &[(KUBERNETES_INDEX, "2")],
                "--worker-index 2, which is from JOB_COMPLETION_INDEX, is not below --num-workers 2",
            ),
        ] {
            assert_eq!(find(count, index, environment), Err(message.to_owned()));
        }
        let error = find(None, None, &[(KUBERNETES_INDEX, "0")]).unwrap_err();
        assert!(error.starts_with("JOB_COMPLETION_INDEX is set: give --num-workers"));
    }
}
