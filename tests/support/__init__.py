"""What several tests share: services, nights, evidence, pictures, faulty servers."""
