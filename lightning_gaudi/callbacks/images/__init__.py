"""Parts of `ImageWriter`: pixels, names, metadata, the folder, its sheet, and the thread."""
