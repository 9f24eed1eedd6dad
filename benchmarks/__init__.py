"""What ddad is worth beside what a user would pick instead, on the same images, size and backbone."""
