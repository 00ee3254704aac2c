//! The memory cloud as a site, and as a place that breaks.
mod conformance;
mod world;
