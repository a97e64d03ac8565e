"""Image files: opened, checked, rotated as EXIF says, decoded as far as needed."""
