//! Does one thing of the image store and tells what it took; `cargo xtask bench images` runs it.
//!
//! ```text
//! measure pull STORE REFERENCE         one pull; prints the largest resident set in KiB
//! measure warm STORE REFERENCE TIMES   pulls of what is there; prints milliseconds, one a line
//! measure roots STORE REFERENCE COUNT  root file systems; prints a line `make MS` or `remove MS` for each
//! measure images STORE                 prints `LAYERS UNPACKED_BYTES NAME` for each
//! ```

use std::error::Error;
use std::time::Instant;

use gantry_images::{NoProgress, PullOptions, PullPolicy, Reference, SnapshotOptions, Store};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["pull", store, reference] => {
            pull(&Store::open(store)?, &reference.parse()?)?;
            let status = std::fs::read_to_string("/proc/self/status")?;
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
            println!("{}", peak.trim().trim_end_matches(" kB"));
        }
        ["warm", store, reference, times] => {
            let reference = reference.parse()?;
            for _ in 0..times.parse::<usize>()? {
                // All that a command does between its start and its end.
                let begun = Instant::now();
                pull(&Store::open(store)?, &reference)?;
                println!("{}", ms(begun));
            }
        }
        ["roots", store, reference, count] => roots(&Store::open(store)?, reference, count.parse()?)?,
        ["images", store] => {
            for image in Store::open(store)?.images()? {
                let name = image.names.first().map(Reference::familiar).unwrap_or_default();
                println!("{} {} {name}", image.layers.len(), image.size);
            }
        }
        _ => return Err("measure pull|warm|roots|images STORE ...".into()),
    }
    Ok(())
}

fn ms(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}

fn pull(store: &Store, reference: &Reference) -> Result<(), Box<dyn Error>> {
    let options = PullOptions { policy: PullPolicy::Always, ..PullOptions::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(store.pull(reference, &options, &NoProgress))?;
    Ok(())
}

/// The mounts go with the namespace, which is the caller's affair.
fn roots(store: &Store, reference: &str, count: usize) -> Result<(), Box<dyn Error>> {
    let image = store.image(reference)?.ok_or("no such image")?;
    #[allow(clippy::needless_update)] // whatever else there is, is as usual
    let options = SnapshotOptions { volatile: true, ..SnapshotOptions::default() };
    for at in 0..count {
        let begun = Instant::now();
        store.snapshot(&image, &format!("c{at}"), &options)?;
        println!("make {}", ms(begun));
    }
    for at in 0..count {
        let begun = Instant::now();
        store.remove_snapshot(&format!("c{at}"))?;
        println!("remove {}", ms(begun));
    }
    Ok(())
}
