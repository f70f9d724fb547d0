"""What every MTA side needs towards our services, whatever stands behind it: used by the simulator and the bridge."""
