//! Scenes for end-to-end tests: two sites, a guest that writes all the time, a witness outside it,
//! and the shipped programs, driven as a user drives them.
//!
//! Nothing of the product's crates is used here: what a test knows, a user can know.

mod agents;
pub mod breaks;
mod gate;
pub mod images;
pub mod killing;
mod programs;
mod scene;
mod secrets;
mod two;

pub use agents::{Agent, Agents, state};
pub use gate::Gate;
pub use programs::Programs;
pub use scene::{Guest, Halfway, Ran, Scene, SceneOptions, VM, Way};
pub use secrets::Secrets;
pub use two::{both_run, never_two};
