"""What lies in the directory of a run or a job, and how it is written."""
