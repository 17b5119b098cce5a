"""What the arm may do now: chunks that arrive late, limits that always hold. No ROS in here."""
