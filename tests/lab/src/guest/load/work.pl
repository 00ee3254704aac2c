# Words of what is installed, in a hash.
my %seen;
for my $name (glob("/usr/share/perl5/*.pm /usr/share/perl5/*/*.pm /usr/share/perl/*/*.pm /var/lib/dpkg/info/*.list")) {
    open my $file, "<", $name or next;
    while (<$file>) { $seen{$_}++ for split }
}
while (1) { sleep 1; $seen{"tick"}++ }
