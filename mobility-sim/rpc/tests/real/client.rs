//! A client against a real libvirtd.
