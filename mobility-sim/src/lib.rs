//! A site's mobility agent: it plays the host next door, so that the site's own live migration runs
//! against a neighbour that it believes in, and carries memory and disks to where they really go.

pub mod domain;
pub mod relay;
