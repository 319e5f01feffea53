//! TensorBoard event files: a TFRecord file of `Event` messages, each a step's scalars.
//!
//! Records are `length: u64, crc of length: u32, data, crc of data: u32`, little-endian, with masked
//! CRC-32C (tensorflow/core/lib/io/record_writer.cc). The data is a protocol buffer of
//! tensorflow/core/util/event.proto, of which these fields are written: `Event { wall_time = 1 (double),
//! step = 2 (int64), file_version = 3 (string), summary = 5 }`, `Summary { value = 1 }`,
//! `Value { tag = 1 (string), simple_value = 2 (float) }`.

use std::path::Path;

use crate::fs::{self, Log};

/// Folder of the event file in an output folder; what to give to `tensorboard --logdir`.
pub const EVENTS_DIR: &str = "tensorboard";

/// The event file. TensorBoard takes files with `tfevents` in their names.
pub const EVENTS_FILE: &str = "events.out.tfevents.remit";

/// What the first record of a file says.
const FILE_VERSION: &str = "brain.Event:2";

/// An event file that grows.
#[derive(Debug)]
pub struct EventLog {
    log: Log,
}

impl EventLog {
    /// Opens the event file of an output folder to resume at `size_bytes`; 0 starts over, and so does a file
    /// that has become shorter, since what it showed is in the other logs.
    ///
    /// # Errors
    ///
    /// As [`Log::open`].
    pub fn open(output: &Path, size_bytes: u64, wall_time: f64) -> fs::Result<Self> {
        let dir = output.join(EVENTS_DIR);
        fs::create_dir_all(&dir)?;
        let mut log = Log::open(&dir.join(EVENTS_FILE))?;
        let size_bytes = if log.size_bytes() < size_bytes {
            0
        } else {
            size_bytes
        };
        log.resume_at(size_bytes)?;
        if size_bytes == 0 {
            let mut event = double(1, wall_time);
            event.extend(bytes(3, FILE_VERSION.as_bytes()));
            log.append(&record(&event))?;
        }
        Ok(Self { log })
    }

    /// Appends scalars of a step; `wall_time` in seconds since 1970.
    pub fn append(&mut self, step: u64, wall_time: f64, scalars: &[(&str, f64)]) -> fs::Result<()> {
        let mut event = double(1, wall_time);
        event.extend(varint(key(2, VARINT)));
        event.extend(varint(step));
        let summary: Vec<u8> = scalars
            .iter()
            .flat_map(|(tag, value)| {
                let mut message = bytes(1, tag.as_bytes());
                message.extend(varint(key(2, FIXED_32)));
                message.extend((*value as f32).to_le_bytes());
                bytes(1, &message)
            })
            .collect();
        event.extend(bytes(5, &summary));
        self.log.append(&record(&event))
    }

    /// The file.
    pub fn log(&self) -> &Log {
        &self.log
    }
}

// Wire types of protocol buffers.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED_32: u64 = 5;

fn key(field: u64, wire_type: u64) -> u64 {
    field << 3 | wire_type
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(2);
    while value >= 0x80 {
        out.push((value & 0x7f | 0x80) as u8);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn double(field: u64, value: f64) -> Vec<u8> {
    let mut out = varint(key(field, FIXED_64));
    out.extend(value.to_le_bytes());
    out
}

fn bytes(field: u64, content: &[u8]) -> Vec<u8> {
    let mut out = varint(key(field, LENGTH));
    out.extend(varint(content.len() as u64));
    out.extend(content);
    out
}

/// CRC-32C, rotated and offset, as TFRecord files have it.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}
