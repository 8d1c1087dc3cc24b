// What flash_lengths has made: the number of flash_split's workgroups, its grid, then the sections that `aux` has elsewhere.
@group(0) @binding($b) var<storage, read> work: array<u32>;
