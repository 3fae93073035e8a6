"""What a run found out: results.json, report.html, the table in the terminal."""
