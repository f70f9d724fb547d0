"""What MTA events mean. Pure: no grpc, no generated code, no clock."""
