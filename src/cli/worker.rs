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

/// Number of a task of a SLURM job step, from 0. Batch scripts have it too, though they are one process.
const SLURM_RANK: &str = "SLURM_PROCID";
/// Number of tasks of the step, which srun sets.
const SLURM_STEP_SIZE: &str = "SLURM_STEP_NUM_TASKS";
/// Number of tasks that the job may have, whether or not srun starts them.
const SLURM_SIZE: &str = "SLURM_NTASKS";
/// Numbers of a process, from 0, and of all processes, as launchers set them: torchrun, Open MPI's mpirun, and those
/// of MPICH and Intel.
const RANKS: [(&str, &str); 3] = [
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
];

/// What a launcher says of this process: one of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rank {
    /// Variable of the number.
    variable: &'static str,
    /// Variable of the count.
    count_variable: &'static str,
    index: u32,
    count: u32,
}

impl std::fmt::Display for Rank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            variable,
            count_variable,
            index,
            count,
        } = self;
        write!(f, "{variable}={index} of {count_variable}={count}")
    }
}

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

    /// Returns what a launcher says of this process; `None` if there is none, or it starts a single one.
    ///
    /// Several may say the same, srun and its MPI say. If they don't, nobody can tell which of them counts workers.
    fn rank(&self) -> Result<Option<Rank>> {
        let mut found: Vec<Rank> = Vec::new();
        let slurm = match self.number(SLURM_STEP_SIZE)? {
            Some(_) => (SLURM_RANK, SLURM_STEP_SIZE),
            None => (SLURM_RANK, SLURM_SIZE),
        };
        for (variable, count_variable) in RANKS.into_iter().chain([slurm]) {
            let (Some(index), Some(count)) = (self.number(variable)?, self.number(count_variable)?)
            else {
                continue;
            };
            // A batch script is task 0, and alone, whatever number of tasks the job may have.
            if count <= 1 || (count_variable == SLURM_SIZE && index == 0) {
                continue;
            }
            let rank = Rank {
                variable,
                count_variable,
                index,
                count,
            };
            if index >= count {
                bail!(Usage(format!(
                    "{rank} can't be: processes are numbered from 0\nhint: give --num-workers and --worker-index"
                )));
            }
            if let Some(other) = found
                .first()
                .filter(|other| (other.index, other.count) != (index, count))
            {
                bail!(Usage(format!(
                    "{other} and {rank} are both set, so they don't say which worker this is\nhint: give --num-workers and \
                     --worker-index"
                )));
            }
            found.push(rank);
        }
        Ok(found.first().copied())
    }

    /// Refuses what may be one of several processes, but does not say of how many, or which.
    fn refuse_unclear(&self) -> Result<()> {
        let alone = "give --num-workers 1 if this process is to score everything";
        if let (Some(0), Some(count @ 2..), None) = (
            self.number(SLURM_RANK)?,
            self.number(SLURM_SIZE)?,
            self.number(SLURM_STEP_SIZE)?,
        ) {
            bail!(Usage(format!(
                "{SLURM_SIZE} is {count}, but no srun started this process ({SLURM_STEP_SIZE} is not set), so it does not say \
                 whether there are others\nhint: {alone}, or start {count} workers with srun"
            )));
        }
        for (variable, count_variable) in RANKS {
            if let (Some(index), None) = (self.number(variable)?, self.number(count_variable)?) {
                bail!(Usage(format!(
                    "{variable} is {index}, but {count_variable} is not set, so it does not say of how many\nhint: {alone}, or \
                     --num-workers and --worker-index"
                )));
            }
        }
        Ok(())
    }

    /// Refuses a rank inside a task of an array, or a pod of a Job: both number workers.
    fn refuse_rank_within(&self, variable: &str, id: u32) -> Result<()> {
        match self.rank()? {
            None => Ok(()),
            Some(rank) => bail!(Usage(format!(
                "{variable} is {id}, and {rank} is set as well: every task would start {} workers of one number\nhint: start \
                 one process per task, or give --num-workers and --worker-index",
                rank.count
            ))),
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
                (None, tasks) => match (tasks?, environment.rank()?) {
                    (Some(tasks), _) => (tasks, Some(SLURM_COUNT)),
                    (None, Some(rank)) => (rank.count, Some(rank.count_variable)),
                    (None, None) => (1, None),
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
            environment.refuse_rank_within(SLURM_ID, id)?;
            let (index, count) = environment.slurm_task(id, count)?;
            return Ok(Self {
                count,
                index,
                from: Some(SLURM_ID),
            });
        }
        if let Some(index) = environment.number(KUBERNETES_INDEX)? {
            environment.refuse_rank_within(KUBERNETES_INDEX, index)?;
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
        if let Some(rank) = environment.rank()? {
            if let Some(count) = count.filter(|count| *count != rank.count) {
                bail!(Usage(format!(
                    "--num-workers is {count}, but {rank} is set, so this does not say which worker it is\nhint: give \
                     --worker-index as well, or leave out --num-workers"
                )));
            }
            return Ok(Self {
                count: rank.count,
                index: rank.index,
                from: Some(rank.variable),
            });
        }
        if let Some(count) = count {
            bail!(Usage(format!(
                "--num-workers {count} needs --worker-index, 0 to {}",
                count.saturating_sub(1)
            )));
        }
        environment.refuse_unclear()?;
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
    fn a_process_of_srun_or_of_a_launcher_is_a_worker() {
        let step = [(SLURM_RANK, "0"), (SLURM_SIZE, "8"), (SLURM_STEP_SIZE, "8")];
        assert_eq!(find(None, None, &step), Ok((0, 8)));
        // Only srun has a task 1.
        let second = [(SLURM_RANK, "1"), (SLURM_SIZE, "8")];
        assert_eq!(find(None, None, &second), Ok((1, 8)));
        assert_eq!(find(Some(8), None, &second), Ok((1, 8)));
        assert_eq!(find(Some(1), None, &second), Ok((0, 1)));
        assert_eq!(find(Some(3), Some(2), &second), Ok((2, 3)));
        assert_eq!(find(None, Some(5), &second), Ok((5, 8)));
        for (rank, size) in RANKS {
            assert_eq!(find(None, None, &[(rank, "3"), (size, "4")]), Ok((3, 4)));
            assert_eq!(find(None, None, &[(rank, "0"), (size, "1")]), Ok((0, 1)));
        }
        // A step of one task in each task of an array, and a step whose launcher says the same.
        let mut array = slurm(5, &[4, 5, 6]);
        array.extend([(SLURM_RANK, "0"), (SLURM_SIZE, "1"), (SLURM_STEP_SIZE, "1")]);
        assert_eq!(find(None, None, &array), Ok((1, 3)));
        let both = [&step[..], &[("RANK", "0"), ("WORLD_SIZE", "8")]].concat();
        assert_eq!(find(None, None, &both), Ok((0, 8)));
        // mpirun in a batch script, which is task 0 itself.
        let mpi = [
            (SLURM_RANK, "0"),
            (SLURM_SIZE, "8"),
            ("OMPI_COMM_WORLD_RANK", "5"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
        ];
        assert_eq!(find(None, None, &mpi), Ok((5, 8)));
    }

    #[test]
    fn what_does_not_say_which_worker_it_is_is_refused() {
        let batch = [(SLURM_RANK, "0"), (SLURM_SIZE, "8")];
        let mut in_array = slurm(5, &[4, 5, 6]);
        in_array.extend([(SLURM_RANK, "1"), (SLURM_SIZE, "2"), (SLURM_STEP_SIZE, "2")]);
        let two = [
            (SLURM_RANK, "1"),
            (SLURM_STEP_SIZE, "2"),
            ("RANK", "3"),
            ("WORLD_SIZE", "16"),
        ];
        for (count, environment, beginning) in [
            (
                None,
                &batch[..],
                "SLURM_NTASKS is 8, but no srun started this process",
            ),
            (
                None,
                &[("RANK", "1")],
                "RANK is 1, but WORLD_SIZE is not set",
            ),
            (
                None,
                &in_array,
                "SLURM_ARRAY_TASK_ID is 5, and SLURM_PROCID=1 of SLURM_STEP_NUM_TASKS=2 is set as well",
            ),
            (
                None,
                &two,
                "RANK=3 of WORLD_SIZE=16 and SLURM_PROCID=1 of SLURM_STEP_NUM_TASKS=2 are both set",
            ),
            (
                Some(4),
                &[("RANK", "1"), ("WORLD_SIZE", "2")],
                "--num-workers is 4, but RANK=1 of WORLD_SIZE=2 is set",
            ),
            (
                None,
                &[("RANK", "2"), ("WORLD_SIZE", "2")],
                "RANK=2 of WORLD_SIZE=2 can't be",
            ),
        ] {
            let error = find(count, None, environment).unwrap_err();
            assert!(error.starts_with(beginning), "{error}");
            assert!(error.contains("\nhint: "), "{error}");
        }
        assert_eq!(find(Some(1), None, &batch), Ok((0, 1)));
        // A batch script of an array is one worker of it.
        let mut array = slurm(5, &[4, 5, 6]);
        array.extend(batch);
        assert_eq!(find(None, None, &array), Ok((1, 3)));
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
