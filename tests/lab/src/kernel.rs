//! Debian's cloud kernel, fetched once and cached.
