//! Real QEMUs that migrate through two relays in this process.

mod line;
mod measure;
mod memory;
mod moving;
mod vm;
