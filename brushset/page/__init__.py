"""What the report page is made of: the verdict, tables and thumbnails, plots, and the template."""
