"""What goes into the folder ``upstream`` of an S3PRL checkout."""
