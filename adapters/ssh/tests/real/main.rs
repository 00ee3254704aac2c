//! Against real SSH servers: OpenSSH's sshd and dropbear, each in namespaces of its own that die
//! with the test. Needs root, util-linux, openssh-server, dropbear-bin and perl-base.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod agent_life;
mod login;
mod path;
mod streams;
mod world;
