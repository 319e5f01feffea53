//! Opens the device that models compute on.

use anyhow::Result;

use super::{Progress, Usage};
use crate::model::{ComputeDevice, ComputeDtype, DeviceChoice};

/// Opens the device that was asked for, and notes which it is if that was left open, and its card if it has one.
///
/// # Errors
///
/// When it can't be used, or not with this dtype.
pub(crate) fn open_device(
    choice: DeviceChoice,
    dtype: ComputeDtype,
    progress: &dyn Progress,
) -> Result<ComputeDevice> {
    let (device, why_not_a_gpu) = ComputeDevice::open(choice)?;
    if dtype == ComputeDtype::Bf16Split && !device.uses_host_memory() {
        return Err(Usage(format!(
            "--dtype bf16-split is for the CPU, but the device is {device}\nhint: --dtype bf16 for a GPU, or --device cpu"
        ))
        .into());
    }
    if let Some(problem) = why_not_a_gpu {
        let way_out = problem.way_out();
        progress.note(&format!("computing on the {device}: {problem}; {way_out}"));
    }
    if let Some(description) = device.description() {
        progress.note(&format!("computing on {device}: {description}"));
    }
    Ok(device)
}
