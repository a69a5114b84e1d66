"""What looks after the dependencies: licences, known vulnerabilities, the bill of materials."""
