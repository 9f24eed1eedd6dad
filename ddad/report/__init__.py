"""From what the pipeline found to what people read: defect regions, drawings, tables and files."""
