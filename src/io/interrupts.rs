//! Which processors take the interrupts of the disk below a directory, from /proc and /sys.
//!
//! A flushed write whose end is told to another processor than the one that waits costs one more wakeup, or waits until the
//! other one has a moment. Disks with a queue for each processor tell it where it was asked; many virtual ones have one queue.
//! Sources: Documentation/core-api/irq/irq-affinity.rst and ABI/testing/sysfs-bus-pci (`msi_irqs`) of the kernel.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Disks below a disk below a disk (a volume on an array on disks): more are not looked for.
const DEPTH_MAX: u32 = 4;

/// The directory of a block device (`st_dev` of what lies on it) in /sys, below `root`: a partition's is in that of its disk.
pub fn sysfs_of(root: &Path, device: u64) -> Option<PathBuf> {
    let major = (device >> 8 & 0xfff) | (device >> 32 & !0xfff);
    let minor = (device & 0xff) | (device >> 12 & !0xff);
    fs::canonicalize(root.join(format!("sys/dev/block/{major}:{minor}"))).ok()
}

/// Numbers of the processors that take interrupts of the disks below `directory`, in order. Empty if that is not known.
pub fn disk_processors(root: &Path, directory: &Path) -> Vec<usize> {
    let device = fs::metadata(directory).ok().map(|it| it.dev());
    device.map_or_else(Vec::new, |device| processors_of_device(root, device))
}

fn processors_of_device(root: &Path, device: u64) -> Vec<usize> {
    let mut lines = Vec::new();
    if let Some(path) = sysfs_of(root, device) {
        lines_of(&path, DEPTH_MAX, &mut lines);
    }
    lines.sort_unstable();
    // The first of several is for settings and commands.
    if lines.len() > 1 {
        lines.remove(0);
    }
    let counts = fs::read_to_string(root.join("proc/interrupts")).unwrap_or_default();
    let processors = counts
        .lines()
        .next()
        .map_or(0, |head| head.split_whitespace().count());
    // Of a disk with a queue for each processor, some may not have been used yet. Else the idle ones are not for reads and writes.
    if lines.len() < processors {
        lines.retain(|line| count_of(&counts, *line) > 0);
    }
    let mut found: Vec<usize> = lines
        .iter()
        .flat_map(|line| affinity(root, *line))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Interrupt lines of a block device, or of those that it is made of.
fn lines_of(path: &Path, depth: u32, lines: &mut Vec<u32>) {
    let entries = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten();
    // A partition, its disk, the controller, the bus.
    for above in path.ancestors().take(8) {
        let before = lines.len();
        let names = entries(above.join("msi_irqs")).map(|entry| entry.file_name());
        lines.extend(names.filter_map(|name| name.to_str()?.parse::<u32>().ok()));
        if lines.len() > before {
            return;
        }
    }
    if depth > 0 {
        for below in entries(path.join("slaves")) {
            if let Ok(path) = fs::canonicalize(below.path()) {
                lines_of(&path, depth - 1, lines);
            }
        }
    }
}

/// How often an interrupt came, on all processors.
fn count_of(counts: &str, line: u32) -> u64 {
    let name = format!("{line}:");
    let Some(of_line) = counts
        .lines()
        .find_map(|text| text.trim_start().strip_prefix(&name))
    else {
        return 0;
    };
    of_line
        .split_whitespace()
        .map_while(|field| field.parse::<u64>().ok())
        .fold(0, u64::saturating_add)
}

/// Processors that an interrupt is sent to.
fn affinity(root: &Path, line: u32) -> Vec<usize> {
    let directory = root.join(format!("proc/irq/{line}"));
    let text = |name| fs::read_to_string(directory.join(name)).ok();
    let list = text("effective_affinity_list")
        .filter(|list| !list.trim().is_empty())
        .or_else(|| text("smp_affinity_list"));
    list.map_or_else(Vec::new, |list| numbers(&list))
}

/// `0-2,5` as 0, 1, 2, 5. Nothing where it is no such list, or names more than there can be.
fn numbers(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last && last < libc::CPU_SETSIZE as usize).then_some(first..=last)
    };
    let ranges: Option<Vec<_>> = list.trim().split(',').map(range).collect();
    ranges.into_iter().flatten().flatten().collect()
}

/// The processors in the order in which `count` shards should have them: those that take the disk's interrupts first, if there are
/// more than are needed.
pub fn in_order(processors: Vec<usize>, count: usize, of_disk: &[usize]) -> Vec<usize> {
    if processors.len() <= count {
        return processors;
    }
    let (mut first, rest): (Vec<usize>, Vec<usize>) = processors
        .into_iter()
        .partition(|number| of_disk.contains(number));
    first.extend(rest);
    first
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A test may panic.
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Devices 254:0 (a disk), 254:1 (its partition) and 253:0 (a volume on the partition).
    fn machine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let pci = "sys/devices/pci0/0000:00:02.0";
        write(&format!("{pci}/msi_irqs/35"), "msix");
        write(&format!("{pci}/msi_irqs/36"), "msix");
        write(&format!("{pci}/msi_irqs/37"), "msix");
        write(&format!("{pci}/virtio1/block/vda/vda1/size"), "1");
        write("sys/devices/virtual/block/dm-0/size", "1");
        write(
            "proc/interrupts",
            "           CPU0       CPU1       CPU2       CPU3\n 35:   0   0   0   1  PCI-MSIX-0000:00:02.0   0-edge      virtio1-config\n\
             \x20 36:   0   12   0   0  PCI-MSIX-0000:00:02.0   1-edge  virtio1-req.0\n 37:  0  0  0  0  PCI-MSIX 3-edge virtio1-req.1\n",
        );
        write("proc/irq/35/effective_affinity_list", "3\n");
        write("proc/irq/36/effective_affinity_list", "1\n");
        write("proc/irq/37/effective_affinity_list", "0\n");
        let disk = root.path().join(pci).join("virtio1/block/vda");
        let volume = root.path().join("sys/devices/virtual/block/dm-0");
        let numbers = root.path().join("sys/dev/block");
        fs::create_dir_all(&numbers).unwrap();
        fs::create_dir_all(volume.join("slaves")).unwrap();
        symlink(&disk, numbers.join("254:0")).unwrap();
        symlink(disk.join("vda1"), numbers.join("254:1")).unwrap();
        symlink(&volume, numbers.join("253:0")).unwrap();
        symlink(disk.join("vda1"), volume.join("slaves/vda1")).unwrap();
        root
    }

    #[test]
    fn a_disk_and_what_lies_on_it_have_the_processors_of_its_interrupts() {
        let root = machine();
        for device in [254 << 8, 254 << 8 | 1, 253 << 8] {
            assert_eq!(processors_of_device(root.path(), device), [1]);
        }
        assert_eq!(processors_of_device(root.path(), 8 << 8), [0; 0]);
        // A queue for each of two processors, one of which has not been used yet.
        let counts = root.path().join("proc/interrupts");
        fs::write(&counts, " CPU0 CPU1\n 35: 0 1 x\n 36: 0 12 x\n 37: 0 0 x\n").unwrap();
        assert_eq!(processors_of_device(root.path(), 254 << 8), [0, 1]);
        // Where the kernel does not say where it sends one, what it was told counts.
        fs::write(
            root.path().join("proc/irq/36/effective_affinity_list"),
            "\n",
        )
        .unwrap();
        fs::write(root.path().join("proc/irq/36/smp_affinity_list"), "2-3\n").unwrap();
        assert_eq!(processors_of_device(root.path(), 254 << 8), [0, 2, 3]);
    }

    #[test]
    fn lists_of_processors() {
        assert_eq!(numbers("0-2,5\n"), [0, 1, 2, 5]);
        for wrong in ["", "x", "3-1", "1-", "0-99999999999", "0,-1"] {
            assert_eq!(numbers(wrong), [0; 0], "{wrong}");
        }
    }

    #[test]
    fn shards_get_the_disks_processors_first_unless_they_get_all() {
        assert_eq!(in_order(vec![0, 1, 2, 3], 2, &[2, 3]), [2, 3, 0, 1]);
        assert_eq!(in_order(vec![0, 1, 2, 3], 1, &[1]), [1, 0, 2, 3]);
        assert_eq!(in_order(vec![0, 1], 2, &[1]), [0, 1]);
        // Those that the process may not use do not count.
        assert_eq!(in_order(vec![0, 1, 4], 2, &[2]), [0, 1, 4]);
        assert_eq!(in_order(vec![0, 1, 4], 2, &[]), [0, 1, 4]);
    }
}
