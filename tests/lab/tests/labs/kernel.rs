//! The cached kernel is complete.

use std::fs;

#[test]
fn the_cloud_kernel_comes_with_an_index_of_its_modules() {
    let kernel = lab::kernel::debian_cloud().unwrap();
    let image = fs::read(&kernel.vmlinuz).unwrap();
    assert_eq!(&image[0x202..0x206], b"HdrS", "the boot protocol's magic");
    let index = fs::read_to_string(kernel.modules_dir.join("modules.dep")).unwrap();
    let virtio_blk = index.lines().find(|line| line.contains("/virtio_blk.ko:")).unwrap();
    assert!(virtio_blk.contains("virtio_ring.ko"), "{virtio_blk}");
    assert!(kernel.modules_dir.ends_with(format!("lib/modules/{}", kernel.version)));
}
